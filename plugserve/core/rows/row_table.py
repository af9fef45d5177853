"""The device rows in use, and the host's data of each: sampling parameters in columns, number of computed tokens.

Every runner applies a StepInput's deltas here; a backend that keeps rows on a device mirrors the scalars there. Tokens
and block tables are the backend's (host_rows.py holds them in numpy). Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag

import numpy as np

from plugserve.core.contracts.runner import NewRow, StepInput
from plugserve.core.contracts.sampling import SamplingParams

SCALARS = np.dtype(
    [
        *((name, "<i8") for name in ("num_computed", "rope_length", "top_k", "seed")),
        *((name, "<f4") for name in ("temperature", "top_p", "min_p")),
        *((name, "<f4") for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")),
        *((name, "<i4") for name in ("num_prompt_tokens", "min_tokens")),
    ]
)
"""A row's numbers, as they lie on the device: 64 bytes."""
_COPIED = (
    *("top_k", "seed", "temperature", "top_p", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens"),
)


class DrawKind(IntEnum):
    """The candidates of a draw, and the order of their cumulative sum: the whole vocabulary by id, or the best tokens
    by falling probability."""

    GREEDY = 0
    WHOLE = 1
    MIN_P = 2
    """The whole vocabulary less what min-p drops, by id."""
    TOP_K = 3
    """The k best tokens, then top-p and min-p among them."""
    TOP_P = 4
    """The fewest best tokens that reach top-p, then min-p."""


class Need(IntFlag):
    """A row's further sampling features."""

    NOTHING = 0
    REPETITION = 1
    COUNTS = 2
    """Presence or frequency penalties."""
    BIAS = 4
    STOP_IDS = 8
    """min_tokens holds stop tokens back."""
    ALLOWED = 16
    BAD_WORDS = 32
    GRAMMAR = 64
    LOGPROBS = 128


@dataclass(frozen=True, slots=True)
class RowRule:
    """How a row's tokens are drawn. stop_ids are held back until min_tokens are generated."""

    params: SamplingParams
    num_prompt_tokens: int
    stop_ids: tuple[int, ...]


class RowTable:
    """num_rows rows, and one more for backends that pad a batch with it. vocab_size is that of the logits."""

    def __init__(self, num_rows: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.scalars = np.zeros(num_rows + 1, dtype=SCALARS)
        self.kinds = np.zeros(num_rows + 1, dtype=np.int8)
        self.needs = np.zeros(num_rows + 1, dtype=np.int16)
        self.rules: dict[int, RowRule] = {}
        self.rows_needing_full_sampler: set[int] = set()
        """Rows that use more than a temperature."""
        self.hidden_rows: set[int] = set()
        """Rows whose hidden states are read, for prompt logprobs or a pooled vector."""
        self._num_computed = [0] * (num_rows + 1)  # as Python ints: read for every entry of every step

    def apply(self, step: StepInput) -> None:
        """Free and fill rows by the step's deltas."""
        for row in step.freed_rows:
            self.rules.pop(row, None)
            self.rows_needing_full_sampler.discard(row)
            self.hidden_rows.discard(row)
        for new in step.new_rows:
            self._fill(new)

    def _fill(self, new: NewRow) -> None:
        row, params = new.row, new.params
        scalars = self.scalars[row]
        scalars["num_computed"] = self._num_computed[row] = new.num_computed
        scalars["rope_length"] = new.rope_length
        scalars["num_prompt_tokens"] = new.num_prompt_tokens
        for name in _COPIED:
            scalars[name] = getattr(params, name)
        self.rules[row] = RowRule(params, new.num_prompt_tokens, tuple(new.stop_ids))
        self.kinds[row] = kind = draw_kind(params, self.vocab_size)
        self.needs[row] = needs = needs_of(params, new.stop_ids)
        if needs or kind not in (DrawKind.GREEDY, DrawKind.WHOLE):
            self.rows_needing_full_sampler.add(row)
        if params.num_prompt_logprobs is not None or params.pooling:
            self.hidden_rows.add(row)

    def num_computed_of(self, rows: Sequence[int]) -> list[int]:
        """The number of computed tokens of each row; one more is known in a row that decodes."""
        return [self._num_computed[row] for row in rows]

    def advance(self, rows: Sequence[int], counts: Sequence[int]) -> None:
        """Count so many more tokens of each row as computed."""
        for row, count in zip(rows, counts, strict=True):
            self._num_computed[row] += count


def draw_kind(params: SamplingParams, vocab_size: int) -> DrawKind:
    """The kind of draw for logits of vocab_size tokens."""
    if params.temperature == 0:
        return DrawKind.GREEDY
    if 0 < params.top_k < vocab_size:
        return DrawKind.TOP_K
    if params.top_p < 1.0:
        return DrawKind.TOP_P
    return DrawKind.MIN_P if params.min_p else DrawKind.WHOLE


def needs_of(params: SamplingParams, stop_ids: Sequence[int]) -> Need:
    """The features that the parameters use."""
    claims = {
        Need.REPETITION: params.repetition_penalty != 1.0,
        Need.COUNTS: params.presence_penalty or params.frequency_penalty,
        Need.BIAS: params.logit_bias,
        Need.STOP_IDS: params.min_tokens > 0 and stop_ids,
        Need.ALLOWED: params.allowed_token_ids,
        Need.BAD_WORDS: params.bad_words,
        Need.GRAMMAR: params.grammar,
        Need.LOGPROBS: params.num_logprobs is not None,
    }
    needs = Need.NOTHING
    for need, is_claimed in claims.items():
        if is_claimed:
            needs |= need
    return needs
