"""What the device remembers between steps, one row a running sequence. Knows nothing of models or requests.

The device is the source of truth for the next step: a sampled token is written into its row here and read from here by
the next step; it never travels to the host and back. The host sends only what changed (StepInput's deltas).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from plugserve.core.contracts import NewRow, StepInput
from plugserve.core.messages import SamplingParams
from plugserve.core.runner.token_filter import TokenFilter, make_filter


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
class StepTensors:
    """One step's T tokens of B rows, made from row state: token ids, rows, positions and cache slots [T]; rows [B];
    the index in T of each row's last token [B]; starts and counts as Python lists."""

    token_ids: torch.Tensor
    token_rows: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    rows: torch.Tensor
    last_index: torch.Tensor
    starts: list[int]
    counts: list[int]


class DeviceState:
    """Row state for num_rows rows of at most max_len tokens."""

    def __init__(self, num_rows: int, max_len: int, block_size: int, device: torch.device) -> None:
        self.device = device
        self.block_size = block_size
        max_blocks = -(-max_len // block_size)
        self.tokens = torch.zeros((num_rows, max_len + 1), dtype=torch.int32, device=device)
        self.num_computed = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.block_table = torch.zeros((num_rows, max_blocks), dtype=torch.int32, device=device)
        self.rope_length = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.temperature = torch.zeros(num_rows, device=device)
        self.top_k = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.top_p = torch.ones(num_rows, device=device)
        self.min_p = torch.zeros(num_rows, device=device)
        self.seed = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.sampling: dict[int, RowSampling] = {}
        self._starts = [0] * num_rows  # host copy of num_computed, for eager kernels that want Python ints

    def apply(self, step: StepInput) -> None:
        """Carry out the step's deltas."""
        for row in step.freed_rows:
            self.sampling.pop(row, None)
        for new in step.new_rows:
            self._add_row(new)
        for row, start, blocks in step.new_blocks:
            self._set_blocks(row, start, blocks)

    def _add_row(self, new: NewRow) -> None:
        row, params = new.row, new.params
        tokens = torch.from_numpy(np.array(new.token_ids, dtype=np.int32))
        self.tokens[row, : len(tokens)] = tokens.to(self.device)
        self.num_computed[row] = new.num_computed
        self._starts[row] = new.num_computed
        self.rope_length[row] = new.rope_length
        self._set_blocks(row, 0, new.blocks)
        self.temperature[row] = params.temperature
        self.top_k[row] = params.top_k
        self.top_p[row] = params.top_p
        self.min_p[row] = params.min_p
        self.seed[row] = params.seed
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

    def _set_blocks(self, row: int, start: int, blocks: Sequence[int]) -> None:
        if blocks:
            self.block_table[row, start : start + len(blocks)] = torch.tensor(
                blocks, dtype=torch.int32, device=self.device
            )

    def num_computed_of(self, rows: Sequence[int]) -> list[int]:
        """How many tokens of each row are computed; one more is known in a row that decodes."""
        return [self._starts[row] for row in rows]

    def gather(self, step: StepInput) -> StepTensors:
        """The step's tokens, positions and slots, read from row state."""
        rows = torch.tensor(step.rows, device=self.device)
        starts = self.num_computed_of(step.rows)
        if len(step.rows) == sum(step.num_tokens):  # every row computes one token
            token_rows, positions = rows, self.num_computed[rows]
            last_index = torch.arange(len(step.rows), device=self.device)
        else:
            counts = torch.tensor(step.num_tokens, device=self.device)
            ends = counts.cumsum(0)
            token_rows = rows.repeat_interleave(counts)
            offsets = torch.arange(int(sum(step.num_tokens)), device=self.device) - (ends - counts).repeat_interleave(
                counts
            )
            positions = self.num_computed[token_rows] + offsets
            last_index = ends - 1
        blocks = self.block_table[token_rows, positions // self.block_size].long()
        return StepTensors(
            token_ids=self.tokens[token_rows, positions],
            token_rows=token_rows,
            positions=positions,
            slots=blocks * self.block_size + positions % self.block_size,
            rows=rows,
            last_index=last_index,
            starts=starts,
            counts=step.num_tokens,
        )

    def advance(self, step: StepInput, tensors: StepTensors, sampling: torch.Tensor, drawn: torch.Tensor) -> None:
        """Count the step's tokens as computed, and write drawn [S] after the rows that sampled.

        sampling [S] are indices into the batch of the rows that drew a token.
        """
        self.num_computed[tensors.rows] += torch.tensor(step.num_tokens, device=self.device)
        for row, count in zip(step.rows, step.num_tokens, strict=True):
            self._starts[row] += count
        rows = tensors.rows[sampling]
        self.tokens[rows, self.num_computed[rows]] = drawn.to(torch.int32)
