"""What the device remembers between steps, one row a running sequence. Knows nothing of models or requests.

The device is the source of truth for the next step: a sampled token is written into its row here and read from here by
the next step; it never travels to the host and back. The host sends only what changed (StepInput's deltas), all in one
copy. One row more than there are sequences is the padding row: captured steps are filled up with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from plugserve.backends.torch.runner.token_filter import TokenFilter, make_filter
from plugserve.backends.torch.runner.transfers import ScatterWrites, to_device
from plugserve.core.contracts.runner import NewRow, StepInput
from plugserve.core.contracts.sampling import SamplingParams

_SCALARS = np.dtype(
    {
        "names": ["num_computed", "rope_length", "top_k", "seed", "temperature", "top_p", "min_p"],
        "formats": ["<i8", "<i8", "<i8", "<i8", "<f4", "<f4", "<f4"],
        "itemsize": 48,
    }
)
"""A row's numbers, as they lie on the device."""
_SCALAR_WORDS = _SCALARS.itemsize // 4


@dataclass(slots=True)
class RowSampling:
    """The sparse part of a row's sampling: ids and values of logit_bias, the ids that min_tokens holds back, and the
    filter of bad words and allowed tokens."""

    params: SamplingParams
    num_prompt_tokens: int
    bias_ids: torch.Tensor | None
    bias: torch.Tensor | None
    stop_ids: torch.Tensor | None
    filter: TokenFilter | None = None


@dataclass(slots=True)
class RowTokens:
    """T tokens of B rows, made from row state: token ids, rows, positions and cache slots [T], and what attention
    reads: query_starts [B + 1], context_lengths [B] and block_table [B, max_blocks]."""

    token_ids: torch.Tensor
    token_rows: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    query_starts: torch.Tensor
    context_lengths: torch.Tensor
    block_table: torch.Tensor


@dataclass(slots=True)
class StepTensors:
    """A step's tokens; rows and counts [B]; the index in T of each row's last token [B]; starts and counts as Python
    lists."""

    tokens: RowTokens
    rows: torch.Tensor
    row_counts: torch.Tensor
    last_index: torch.Tensor
    starts: list[int]
    counts: list[int]


class DeviceState:
    """Row state for num_rows rows of at most max_len tokens, and a padding row of that number."""

    def __init__(self, num_rows: int, max_len: int, block_size: int, device: torch.device) -> None:
        self.device = device
        self.block_size = block_size
        self.padding_row = num_rows
        self.max_blocks = -(-max_len // block_size)
        self._token_stride = max_len + 1
        self._tokens_place = (num_rows + 1) * _SCALAR_WORDS
        self._table_place = self._tokens_place + (num_rows + 1) * self._token_stride
        num_words = self._table_place + (num_rows + 1) * self.max_blocks
        words = torch.zeros(num_words + num_words % 2, dtype=torch.int32, device=device)
        self._writes = ScatterWrites(words)
        scalars = words[: self._tokens_place].view(num_rows + 1, _SCALAR_WORDS)
        wide, real = scalars.view(torch.int64), scalars.view(torch.float32)
        self.num_computed, self.rope_length, self.top_k, self.seed = (wide[:, i] for i in range(4))
        self.temperature, self.top_p, self.min_p = (real[:, i] for i in range(8, 11))
        self.tokens = words[self._tokens_place : self._table_place].view(num_rows + 1, self._token_stride)
        self.block_table = words[self._table_place : num_words].view(num_rows + 1, self.max_blocks)
        self.sampling: dict[int, RowSampling] = {}
        self.rows_needing_full_sampler: set[int] = set()  # those whose sampling is not plain
        self.hidden_rows: set[int] = set()  # those that read hidden states
        self._starts = [0] * (num_rows + 1)  # host copy of num_computed, for eager kernels that want Python ints

    def set_padding_block(self, block: int) -> None:
        """Give the padding row a block of its own to write to."""
        self._writes.add(self._table_place + self.padding_row * self.max_blocks, np.array([block], dtype=np.int32))
        self._writes.flush()

    def apply(self, step: StepInput) -> None:
        """Carry out the step's deltas."""
        for row in step.freed_rows:
            self.sampling.pop(row, None)
            self.rows_needing_full_sampler.discard(row)
            self.hidden_rows.discard(row)
        for new in step.new_rows:
            self._add_row(new)
        self._writes.flush()  # a new row's blocks may be extended by the same step
        for row, start, blocks in step.new_blocks:
            self._add_blocks(row, start, blocks)
        self._writes.flush()

    def _add_row(self, new: NewRow) -> None:
        row, params = new.row, new.params
        scalars = np.zeros(1, dtype=_SCALARS)
        scalars["num_computed"] = self._starts[row] = new.num_computed
        scalars["rope_length"] = new.rope_length
        for name in ("top_k", "seed", "temperature", "top_p", "min_p"):
            scalars[name] = getattr(params, name)
        self._writes.add(row * _SCALAR_WORDS, scalars.view(np.int32))
        self._writes.add(self._tokens_place + row * self._token_stride, np.array(new.token_ids, dtype=np.int32))
        self._add_blocks(row, 0, new.blocks)
        bias = params.logit_bias
        holds_back = params.min_tokens > 0 and bool(new.stop_ids)
        self.sampling[row] = RowSampling(
            params=params,
            num_prompt_tokens=new.num_prompt_tokens,
            bias_ids=torch.tensor(list(bias), device=self.device) if bias else None,
            bias=torch.tensor(list(bias.values()), dtype=torch.float32, device=self.device) if bias else None,
            stop_ids=torch.tensor(new.stop_ids, device=self.device) if holds_back else None,
            filter=make_filter(params, self.device),
        )
        if not _is_plain(params):
            self.rows_needing_full_sampler.add(row)
        if params.num_prompt_logprobs is not None or params.pooling:
            self.hidden_rows.add(row)

    def _add_blocks(self, row: int, start: int, blocks: list[int]) -> None:
        self._writes.add(self._table_place + row * self.max_blocks + start, np.array(blocks, dtype=np.int32))

    def num_computed_of(self, rows: list[int]) -> list[int]:
        """How many tokens of each row are computed; one more is known in a row that decodes."""
        return [self._starts[row] for row in rows]

    def gather(self, step: StepInput) -> StepTensors:
        """The step's tokens, positions and slots, read from row state."""
        num_rows, num_tokens = len(step.rows), sum(step.num_tokens)
        columns = np.zeros((3, num_rows + 1), dtype=np.int32)
        columns[0, :num_rows] = step.rows
        columns[1, :num_rows] = step.num_tokens
        np.cumsum(columns[1, :num_rows], out=columns[2, 1:])
        ints = to_device(columns, self.device)
        rows, counts, query_starts = ints[0, :num_rows], ints[1, :num_rows], ints[2]
        return StepTensors(
            tokens=self.read(rows, query_starts, num_tokens, max(step.num_tokens)),
            rows=rows.long(),
            row_counts=counts,
            last_index=query_starts[1:] - 1,
            starts=self.num_computed_of(step.rows),
            counts=step.num_tokens,
        )

    def read(
        self,
        rows: torch.Tensor,
        query_starts: torch.Tensor,
        num_tokens: int,
        most_tokens: int,
        offsets: torch.Tensor | None = None,
    ) -> RowTokens:
        """num_tokens tokens of a batch's rows [B], row b's of them at query_starts [B + 1] b and on; no row has more
        than most_tokens. The first of each is the one after those that are computed, or offsets [B] int32 further."""
        if self.device.type == "cuda":
            return self._read_by_kernel(rows, query_starts, num_tokens, most_tokens, offsets)
        counts, firsts = query_starts.diff(), self.num_computed[rows]
        if offsets is not None:
            firsts = firsts + offsets
        if num_tokens == len(rows) and most_tokens == 1:
            token_rows, positions = rows.long(), firsts
        else:
            token_rows = rows.long().repeat_interleave(counts)
            within = torch.arange(num_tokens) - query_starts[:-1].repeat_interleave(counts)
            positions = firsts.repeat_interleave(counts) + within
        blocks = self.block_table[token_rows, positions // self.block_size].long()
        slots = blocks * self.block_size + positions % self.block_size
        token_ids, lengths = self.tokens[token_rows, positions], (firsts + counts).int()
        return RowTokens(token_ids, token_rows, positions, slots, query_starts, lengths, self.block_table[rows])

    def _read_by_kernel(
        self,
        rows: torch.Tensor,
        query_starts: torch.Tensor,
        num_tokens: int,
        most_tokens: int,
        offsets: torch.Tensor | None,
    ) -> RowTokens:
        from plugserve.backends.torch.kernels.step_state import read_step

        narrow = partial(torch.empty, dtype=torch.int32, device=self.device)
        wide = partial(torch.empty, dtype=torch.int64, device=self.device)
        by_token = narrow(num_tokens), wide(num_tokens), wide(num_tokens), wide(num_tokens)
        by_row = narrow(len(rows)), narrow((len(rows), self.max_blocks))
        state = (self.tokens, self.num_computed, self.block_table)
        read_step(rows, query_starts, offsets, most_tokens, *state, self.block_size, (*by_token, *by_row))
        return RowTokens(*by_token, query_starts, *by_row)

    def write_tokens(self, texts: list[tuple[int, int, list[int]]]) -> None:
        """Put token ids at a place of a row, for each (row, place, ids)."""
        for row, place, ids in texts:
            self._writes.add(self._tokens_place + row * self._token_stride + place, np.array(ids, dtype=np.int32))
        self._writes.flush()

    def advance_by(self, grown: list[tuple[int, int, int | None]]) -> None:
        """For each (row, count, token): count so many tokens more as computed, and write the token that was drawn
        after them, if one was."""
        for row, count, token in grown:
            self._starts[row] += count
            self._writes.add(row * _SCALAR_WORDS, np.array([self._starts[row]], dtype=np.int64))
            if token is not None:
                place = self._tokens_place + row * self._token_stride + self._starts[row]
                self._writes.add(place, np.array([token], dtype=np.int32))
        self._writes.flush()

    def advance(self, step: StepInput, tensors: StepTensors, sampling: torch.Tensor, drawn: torch.Tensor) -> None:
        """Count the step's tokens as computed, and write drawn [S] after the rows that sampled.

        sampling [S] are indices into the batch of the rows that drew a token.
        """
        self.num_computed[tensors.rows] += tensors.row_counts
        for row, count in zip(step.rows, step.num_tokens, strict=True):
            self._starts[row] += count
        rows = tensors.rows[sampling]
        self.tokens[rows, self.num_computed[rows]] = drawn.to(torch.int32)

    def advance_host(self, step: StepInput) -> None:
        """The host's part of advance, for captured steps, which do the rest on the device."""
        for row in step.rows:
            self._starts[row] += 1


def _is_plain(params: SamplingParams) -> bool:
    """Nothing but a temperature shapes what is drawn, and nothing but the token is wanted."""
    has_penalties = params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty
    has_rules = params.logit_bias or params.min_tokens or params.bad_words or params.allowed_token_ids or params.grammar
    has_filters = params.temperature > 0 and (params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0)
    return not (has_penalties or has_rules or has_filters or params.num_logprobs is not None)
