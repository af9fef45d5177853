"""Kernels that move a step between host and device, against torch."""

import numpy as np
import pytest
import torch

from plugserve.backends.torch.kernels.step_state import advance_rows, read_step, scatter
from plugserve.backends.torch.runner.device_state import DeviceState
from plugserve.core.contracts.runner import NewRow, StepInput
from plugserve.core.contracts.sampling import SamplingParams


def test_scatter(device):
    words = torch.zeros(4000, dtype=torch.int32, device=device)
    payload = torch.arange(1, 2501, dtype=torch.int32, device=device)
    segments = torch.tensor([[10, 0, 3], [100, 3, 2497]], device=device)
    scatter(words, segments, payload)
    expected = torch.zeros(4000, dtype=torch.int32)
    expected[10:13] = torch.arange(1, 4)
    expected[100:2597] = torch.arange(4, 2501)
    assert torch.equal(words.cpu(), expected.int())


def state_with_rows():
    state = DeviceState(3, 100, 16, 50, torch.device("cpu"))
    rng = np.random.default_rng(0)
    for row, (length, computed) in enumerate([(40, 33), (7, 0), (90, 80)]):
        blocks = rng.permutation(50)[: -(-length // 16)].tolist()
        params = SamplingParams(max_tokens=5, seed=row)
        new = NewRow(row, rng.integers(0, 999, length).tolist(), length, computed, blocks, params, ())
        state.apply(StepInput(0, [new], [], [], [], [], []))
    return state


@pytest.mark.parametrize("offsets", [None, [-3, 2, 0]])
def test_read_step_reads_what_torch_reads(device, offsets):
    state = state_with_rows()
    rows, counts = [2, 0, 1], [10 if offsets is None else 5, 1, 7]
    shift = None if offsets is None else torch.tensor(offsets, dtype=torch.int32)
    starts = torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32)
    read = state.read(torch.tensor(rows), starts, sum(counts), max(counts), shift)
    expected = (read.token_ids, read.token_rows, read.positions, read.slots, read.context_lengths, read.block_table)
    outs = [torch.full_like(one, -7, device=device) for one in expected]
    shift = None if shift is None else shift.to(device)
    places = (state.tokens.to(device), state.num_computed.to(device), state.block_table.to(device))
    rows = torch.tensor(rows, dtype=torch.int32, device=device)
    read_step(rows, starts.to(device), shift, max(counts), *places, 16, outs)
    for ours, theirs in zip(outs, expected, strict=True):
        assert torch.equal(ours.cpu(), theirs)


def test_advance_rows_leaves_the_padding_row_alone(device):
    tokens = torch.zeros((4, 20), dtype=torch.int32, device=device)
    computed = torch.tensor([5, 6, 7, 0], device=device)
    rows = torch.tensor([2, 0, 3, 3], dtype=torch.int32, device=device)
    lengths = torch.tensor([8, 6, 1, 1], dtype=torch.int32, device=device)
    drawn = torch.tensor([11, 12, 13, 14], dtype=torch.int32, device=device)
    advance_rows(rows, lengths, drawn, tokens, computed, padding_row=3)
    assert computed.tolist() == [6, 6, 8, 0]
    assert tokens[2, 8] == 11
    assert tokens[0, 6] == 12
    assert tokens.sum() == 23
