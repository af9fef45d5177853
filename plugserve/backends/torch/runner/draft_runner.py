"""A second, smaller model that drafts for the served one: contracts.DraftRunner over torch.

It reads the served model's rows (tokens, block tables, sampling parameters) and has keys and values of its own in
blocks of the same numbers. Its user keeps track of which tokens of a row it has computed (plugins/speculative). On a
GPU passes over a few tokens are captured ones.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch

from plugserve.backends.torch.runner.device_state import DeviceState
from plugserve.backends.torch.runner.row_forward import RowForward
from plugserve.backends.torch.runner.transfers import to_device
from plugserve.backends.torch.sampling.draws import make_draws
from plugserve.backends.torch.sampling.inverse_cdf import draft_numbers, invert_wide_cdf
from plugserve.backends.torch.sampling.sampler import Sampler
from plugserve.core.contracts.attention import AttentionBackend, KVLayout
from plugserve.core.contracts.model import ModelDefinition

if TYPE_CHECKING:
    from plugserve.backends.torch.runner.cuda_graphs import CapturedSteps

_MOST_CAPTURED = 128  # rows: larger batches have little to gain from drafts
_FEW_TOKENS = 4  # of a row in a captured pass


class TorchDraftRunner:
    """The DraftRunner of a loaded draft model. draft_loader.py makes it; attach gives it rows and memory before it is
    used. token_ids [N] are those that the draft proposes, where its head gives logits for these alone."""

    def __init__(
        self,
        model: ModelDefinition,
        attention: AttentionBackend,
        layout: KVLayout,
        vocab_size: int,
        block_size: int,
        token_ids: torch.Tensor | None,
    ) -> None:
        self._model = model
        self._attention = attention
        self._layout = layout
        self._vocab_size = vocab_size
        self._block_size = block_size
        self._token_ids = token_ids
        self._captured: CapturedSteps | None = None

    def attach(
        self, state: DeviceState, sampler: Sampler, kv: list[torch.Tensor], max_num_tokens: int, max_num_seqs: int
    ) -> None:
        """kv has one tensor a layer; no forward pass holds more than max_num_tokens."""
        self._state = state
        self._sampler = sampler
        self._max_num_tokens = max_num_tokens
        self._max_num_seqs = max_num_seqs
        self._attention.prepare(max_num_tokens, max_num_seqs)
        self._forward = RowForward(self._model, state, self._attention, kv)

    def capture(self) -> None:
        """Capture passes over a few tokens, where the attention backend allows it."""
        if not self._attention.graph_safe:
            return
        from plugserve.backends.torch.runner.cuda_graphs import CapturedSteps

        most = min(_MOST_CAPTURED, self._max_num_seqs)
        captured = CapturedSteps(self._state, self._forward.single_tokens, most)
        captured.capture("draft")
        self._captured = captured

    def close(self) -> None:
        self._captured = None

    # ---- what proposers use

    @property
    def kv_bytes_per_token(self) -> int:
        return self._layout.bytes_per_block // self._block_size

    def forward(self, rows: list[int], starts: list[int], counts: list[int]) -> torch.Tensor:
        """See DraftRunner. Long rows are computed in as many passes as needed."""
        if self._captured is not None and max(counts) <= _FEW_TOKENS and sum(counts) <= self._captured.max_num_rows:
            return self._served(self._replay(self._captured, rows, starts, counts))
        starts, left = list(starts), list(counts)
        last: list[torch.Tensor | None] = [None] * len(rows)
        while any(left):
            room, some = self._max_num_tokens, []
            for i, count in enumerate(left):
                if taken := min(count, room):
                    some.append((i, taken))
                    room -= taken
            hidden = self._pass([rows[i] for i, _ in some], [starts[i] for i, _ in some], [n for _, n in some])
            for (i, taken), its_hidden in zip(some, hidden, strict=True):
                starts[i] += taken
                left[i] -= taken
                last[i] = its_hidden
        return self._served(self._forward.raw_logits(torch.stack([one for one in last if one is not None])))

    def _replay(self, captured: CapturedSteps, rows: list[int], starts: list[int], counts: list[int]) -> torch.Tensor:
        """Raw logits after the last token of each row, all of a row's tokens being rows of a captured pass."""
        each: list[int] = []
        offsets: list[int] = []
        for row, start, count, computed in zip(
            rows, starts, counts, self._state.table.num_computed_of(rows), strict=True
        ):
            each += [row] * count
            offsets += range(start - computed, start - computed + count)
        logits = captured.forward(each, offsets).logits
        if len(each) == len(rows):
            return logits
        return logits[to_device(np.array(list(accumulate(counts))) - 1, self._state.device)]

    def _pass(self, rows: list[int], starts: list[int], counts: list[int]) -> torch.Tensor:
        """Hidden states [B, H] after the last token of each row."""
        offsets = [
            start - computed for start, computed in zip(starts, self._state.table.num_computed_of(rows), strict=True)
        ]
        ints = to_device(np.array([rows, offsets], dtype=np.int32), self._state.device)
        query_starts = to_device(np.cumsum([0, *counts]).astype(np.int32), self._state.device)
        context_lens = [start + count for start, count in zip(starts, counts, strict=True)]
        return self._forward.last_hidden(ints[0], query_starts, counts, context_lens, ints[1])[0]

    def _served(self, raw_logits: torch.Tensor) -> torch.Tensor:
        """float32 logits over the served model's vocabulary: -inf for tokens that the draft never proposes."""
        logits, vocab_size = self._forward.capped(raw_logits), self._vocab_size
        if self._token_ids is not None:
            everywhere = logits.new_full((len(logits), vocab_size), -torch.inf)
            everywhere[:, self._token_ids] = logits
            return everywhere
        missing = vocab_size - logits.shape[1]
        if missing > 0:
            return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)
        return logits[:, :vocab_size].contiguous() if missing else logits

    def sample(
        self, logits: torch.Tensor, rows: list[int], num_known: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See DraftRunner. Its random numbers are independent of those that verification uses."""
        draws = make_draws(rows, num_known, logits.device)
        self._sampler.adjust(logits, draws)
        if not self._state.table.kinds[draws.rows].any():  # all greedy
            return logits.argmax(-1), None
        probs = self._sampler.distributions(logits, draws)
        return invert_wide_cdf(probs, draft_numbers(self._state.seed[draws.device_rows], draws.positions)), probs
