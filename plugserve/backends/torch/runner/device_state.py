"""The device's state between steps, one row a running sequence: the row table's scalars, tokens, block tables.

The device is the source of truth for the next step: a sampled token is written into its row here and read from here by
the next step; it never travels to the host and back. The host sends only what changed (StepInput's deltas), all in one
copy. One row more than there are sequences is the padding row: captured steps are filled up with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from plugserve.backends.torch.runner.transfers import ScatterWrites, to_device
from plugserve.backends.torch.sampling.row_lists import RowLists
from plugserve.core.contracts.runner import NewRow, StepInput
from plugserve.core.rows.row_table import SCALARS, RowTable

_SCALAR_WORDS = SCALARS.itemsize // 4


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
    """Row state for num_rows rows of at most max_len tokens, and a padding row of that number. vocab_size is that of
    the logits that tokens are drawn from."""

    def __init__(self, num_rows: int, max_len: int, block_size: int, vocab_size: int, device: torch.device) -> None:
        self.device = device
        self.table = RowTable(num_rows, vocab_size)
        self.lists = RowLists(device)
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
        self.repetition_penalty, self.presence_penalty, self.frequency_penalty = (real[:, i] for i in range(11, 14))
        self.num_prompt_tokens = scalars[:, 14]
        self.tokens = words[self._tokens_place : self._table_place].view(num_rows + 1, self._token_stride)
        self.block_table = words[self._table_place : num_words].view(num_rows + 1, self.max_blocks)

    def set_padding_block(self, block: int) -> None:
        """Assign the padding row a block to write to."""
        self._writes.add(self._table_place + self.padding_row * self.max_blocks, np.array([block], dtype=np.int32))
        self._writes.flush()

    def apply(self, step: StepInput) -> None:
        """Carry out the step's deltas."""
        self.table.apply(step)
        for row in step.freed_rows:
            self.lists.drop(row)
        for new in step.new_rows:
            self._add_row(new)
        self._writes.flush()  # a new row's blocks may be extended by the same step
        for row, start, blocks in step.new_blocks:
            self._add_blocks(row, start, blocks)
        self._writes.flush()

    def _add_row(self, new: NewRow) -> None:
        row = new.row
        self._writes.add(row * _SCALAR_WORDS, self.table.scalars[row : row + 1].view(np.int32))
        self._writes.add(self._tokens_place + row * self._token_stride, np.array(new.token_ids, dtype=np.int32))
        self._add_blocks(row, 0, new.blocks)
        self.lists.add(new)

    def _add_blocks(self, row: int, start: int, blocks: list[int]) -> None:
        self._writes.add(self._table_place + row * self.max_blocks + start, np.array(blocks, dtype=np.int32))

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
            starts=self.table.num_computed_of(step.rows),
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
        """num_tokens tokens of device rows [B], those of rows[b] from query_starts[b] on; no row has more than
        most_tokens. The first of each is the one after those that are computed, or offsets [B] int32 further."""
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
        rows = [row for row, _, _ in grown]
        self.table.advance(rows, [count for _, count, _ in grown])
        for row, num_computed, (_, _, token) in zip(rows, self.table.num_computed_of(rows), grown, strict=True):
            self._writes.add(row * _SCALAR_WORDS, np.array([num_computed], dtype=np.int64))
            if token is not None:
                place = self._tokens_place + row * self._token_stride + num_computed
                self._writes.add(place, np.array([token], dtype=np.int32))
        self._writes.flush()

    def advance(self, step: StepInput, tensors: StepTensors, sampling: torch.Tensor, drawn: torch.Tensor) -> None:
        """Count the step's tokens as computed, and write drawn [S] after the rows that sampled.

        sampling [S] are the entries that drew a token.
        """
        self.num_computed[tensors.rows] += tensors.row_counts
        self.table.advance(step.rows, step.num_tokens)
        rows = tensors.rows[sampling]
        self.tokens[rows, self.num_computed[rows]] = drawn.to(torch.int32)

    def advance_host(self, step: StepInput) -> None:
        """The host's part of advance, for captured steps, whose device part is captured."""
        self.table.advance(step.rows, [1] * len(step.rows))
