"""Samples tokens from logits: adjust, weigh, draw. The torch form of core/sampling_law/reference.py, batched over
draws.

A rule is computed only for the draws that use it. kernels/plain_draw.py is the declared
alternative for draws that ask for nothing but a temperature, tested against the same reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from plugserve.backends.torch.runner.device_state import DeviceState
from plugserve.backends.torch.sampling.adjust import Adjuster
from plugserve.backends.torch.sampling.draws import Draws, Indices, TokenMasks, selection
from plugserve.backends.torch.sampling.inverse_cdf import uniform
from plugserve.backends.torch.sampling.logprobs import Logprobs, logprobs_of
from plugserve.backends.torch.sampling.weigh import Weigher
from plugserve.core.rows.row_table import Need

_LOGPROBS = int(Need.LOGPROBS)
_MOST_LOGITS = 1 << 23  # that are weighed at a time

Judge = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(adjusted logits [S, V], tokens that were drawn from them [S]) -> the tokens that are kept [S]."""


@dataclass(slots=True)
class Drawn:
    """Tokens [S], -1 where logits are not numbers; and the logprobs of the draws that ask for them, by their index."""

    tokens: torch.Tensor
    wanting: list[int]
    logprobs: Logprobs | None

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> Drawn:
        """The same with every tensor moved."""
        return Drawn(move(self.tokens), self.wanting, None if self.logprobs is None else self.logprobs.moved(move))

    @classmethod
    def joined(cls, parts: Sequence[Drawn]) -> Drawn:
        """The draws of all parts, one after the other."""
        starts = accumulate((len(part.tokens) for part in parts), initial=0)
        wanting = [start + index for start, part in zip(starts, parts, strict=False) for index in part.wanting]
        logprobs = [part.logprobs for part in parts if part.logprobs is not None]
        tokens = torch.cat([part.tokens for part in parts])
        return cls(tokens, wanting, Logprobs.joined(logprobs) if logprobs else None)


def rows_at_once(vocab_size: int) -> int:
    """The number of rows that are drawn at a time."""
    return max(1, _MOST_LOGITS // vocab_size)


class Sampler:
    """Draws tokens by the parameters of state's rows."""

    def __init__(self, state: DeviceState) -> None:
        self._state = state
        self._adjuster = Adjuster(state)
        self._weigher = Weigher(state)

    def sample(
        self, logits: torch.Tensor, draws: Draws, masks: TokenMasks | None = None, judge: Judge | None = None
    ) -> Drawn:
        """Draw from logits [S, V] float32, which are changed in place. judge may replace drawn tokens (draft
        verification). Many draws are made some at a time, so that what they work in stays small."""
        size = rows_at_once(logits.shape[1])
        if judge is not None or len(draws) <= size:
            return self._sample_some(logits, draws, masks, judge)
        spans = [slice(start, start + size) for start in range(0, len(draws), size)]
        return Drawn.joined(
            [
                self._sample_some(logits[span], draws.part(span, span), None if masks is None else masks.part(span))
                for span in spans
            ]
        )

    def _sample_some(
        self, logits: torch.Tensor, draws: Draws, masks: TokenMasks | None, judge: Judge | None = None
    ) -> Drawn:
        wanting = np.flatnonzero(self._state.table.needs[draws.rows] & _LOGPROBS)
        chosen = selection(wanting, len(draws), logits.device) if len(wanting) else None
        raw = logits[chosen].log_softmax(-1) if chosen is not None else None
        self._adjuster.apply(logits, draws, masks)
        tokens = self._draw(logits, draws)
        if judge is not None:
            tokens = judge(logits, tokens)
        logprobs = None
        if raw is not None and chosen is not None:
            logprobs = logprobs_of(raw, tokens[chosen], self._num_top(draws.rows[wanting]))
        return Drawn(torch.where(logits.amax(-1).isnan(), -1, tokens), wanting.tolist(), logprobs)

    def _num_top(self, rows: Indices) -> list[int]:
        return [self._state.table.rules[row].params.num_logprobs or 0 for row in rows.tolist()]

    def _draw(self, logits: torch.Tensor, draws: Draws) -> torch.Tensor:
        numbers: torch.Tensor | None = None
        tokens = torch.empty(len(draws), dtype=torch.int64, device=logits.device)
        for index, shares in self._weigher.weigh(logits, draws):
            if shares.ids is not None and shares.ids.shape[1] == 1:
                drawn = shares.ids[:, 0]
            else:
                if numbers is None:
                    numbers = uniform(self._state.seed[draws.device_rows], draws.positions)
                drawn = shares.draw(numbers[index])
            if isinstance(index, slice):  # all draws
                return drawn
            tokens[index] = drawn
        return tokens

    def adjust(self, logits: torch.Tensor, draws: Draws) -> None:
        """Penalties, bias and bans, in place."""
        self._adjuster.apply(logits, draws)

    def distributions(self, logits: torch.Tensor, draws: Draws) -> torch.Tensor:
        """The distribution that sample draws from: probabilities [S, V] float32 of adjusted logits; one token has
        probability 1 in a row of temperature 0."""
        probs = torch.empty_like(logits)
        for index, shares in self._weigher.weigh(logits, draws):
            probs[index] = shares.probabilities(logits.shape[1]).to(probs.dtype)
        return probs
