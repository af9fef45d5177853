"""The fused draw against the law of sampling."""

import pytest
import torch

from plugserve.backends.torch.kernels.plain_draw import PlainDraw
from plugserve.backends.torch.runner.device_state import DeviceState
from plugserve.core.contracts.runner import NewRow, StepInput
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.sampling_law.reference import next_token


@pytest.mark.parametrize("vocab_size", [50, 5000])
@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_draws_what_the_reference_draws(device, vocab_size, soft_cap):
    torch.manual_seed(0)
    num_rows = 12
    state = DeviceState(num_rows, 64, 16, vocab_size, torch.device("cpu"))
    temperatures = [0.0, 0.7, 1.0, 1.5] * 3
    for row, temperature in enumerate(temperatures):
        params = SamplingParams(max_tokens=5, seed=row * 7919 - 5, temperature=temperature)
        state.apply(StepInput(0, [NewRow(row, [1, 2, 3], 3, 0, [row], params, ())], [], [], [], [], []))
    logits = torch.randn(num_rows, vocab_size) * 2
    known = list(range(3, 3 + num_rows))
    capped = logits if soft_cap is None else soft_cap * torch.tanh(logits / soft_cap)
    expected = [
        next_token(capped[row].numpy(), state.table.rules[row], [1, 2, 3] + [0] * row) for row in range(num_rows)
    ]
    drawn = torch.empty(num_rows, dtype=torch.int32, device=device)
    rows = torch.arange(num_rows, dtype=torch.int32, device=device)
    places = torch.tensor(known, dtype=torch.int32, device=device)
    PlainDraw(num_rows, vocab_size, soft_cap, torch.device(device)).draw(
        logits.to(device), rows, places, state.temperature.to(device), state.seed.to(device), drawn
    )
    assert drawn.tolist() == expected


def test_logits_that_are_not_numbers_are_told(device):
    logits = torch.zeros(2, 3000, device=device)
    logits[1, 2999] = torch.nan
    drawn = torch.empty(2, dtype=torch.int32, device=device)
    rows = torch.arange(2, dtype=torch.int32, device=device)
    temperature, seed = torch.zeros(2, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    PlainDraw(2, 3000, None, torch.device(device)).draw(logits, rows, rows, temperature, seed, drawn)
    assert drawn.tolist() == [0, -1]
