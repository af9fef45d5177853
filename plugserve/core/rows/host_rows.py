"""Rows whose tokens and block tables lie in numpy: for backends that compute on the host, or only have a forward pass.

The order of a step is apply, read, the backend's forward pass, a draw (sampling_law/reference.py or its own), advance.
Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from plugserve.core.contracts.forward_pass import HostBatch, Ints
from plugserve.core.contracts.runner import StepInput
from plugserve.core.rows.row_table import RowTable


class HostRows:
    """num_rows rows of at most max_len tokens."""

    def __init__(self, num_rows: int, max_len: int, block_size: int, vocab_size: int) -> None:
        self.table = RowTable(num_rows, vocab_size)
        self.block_size = block_size
        self.tokens = np.zeros((num_rows, max_len + 1), dtype=np.int32)
        self.block_table = np.zeros((num_rows, -(-max_len // block_size)), dtype=np.int32)

    def apply(self, step: StepInput) -> None:
        """Carry out the step's deltas."""
        self.table.apply(step)
        for new in step.new_rows:
            self.tokens[new.row, : len(new.token_ids)] = new.token_ids
            self.block_table[new.row, : len(new.blocks)] = new.blocks
        for row, start, blocks in step.new_blocks:
            self.block_table[row, start : start + len(blocks)] = blocks

    def read(self, step: StepInput) -> HostBatch:
        """The tokens that the step computes."""
        rows, counts = np.array(step.rows), np.array(step.num_tokens)
        starts = np.array(self.table.num_computed_of(step.rows))
        query_starts = np.concatenate(([0], np.cumsum(counts)))
        token_rows = rows.repeat(counts)
        positions = np.arange(query_starts[-1]) - (query_starts[:-1] - starts).repeat(counts)
        blocks = self.block_table[token_rows, positions // self.block_size].astype(np.int64)
        return HostBatch(
            token_ids=self.tokens[token_rows, positions].astype(np.int64),
            positions=positions,
            slots=blocks * self.block_size + positions % self.block_size,
            query_starts=query_starts,
            context_lens=starts + counts,
            block_table=self.block_table[rows],
            last_index=query_starts[1:] - 1,
        )

    def known(self, row: int, num_known: int) -> Ints:
        """The row's first num_known tokens: its prompt, and what was generated."""
        return self.tokens[row, :num_known].astype(np.int64)

    def advance(self, step: StepInput, drawn: Mapping[int, int]) -> None:
        """Count the step's tokens as computed, and write drawn (by entry) after the rows that sampled."""
        self.table.advance(step.rows, step.num_tokens)
        for entry, token in drawn.items():
            row = step.rows[entry]
            self.tokens[row, self.table.num_computed_of([row])[0]] = token
