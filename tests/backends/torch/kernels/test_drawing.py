"""The fused draw against the sampler, which is the law."""

import pytest
import torch

from plugserve.backends.torch.kernels.drawing import Drawing
from plugserve.backends.torch.runner.device_state import DeviceState
from plugserve.backends.torch.runner.sampler import Sampler
from plugserve.core.contracts.runner import NewRow, StepInput
from plugserve.core.contracts.sampling import SamplingParams


@pytest.mark.parametrize("vocab_size", [50, 5000])
@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_draws_what_the_sampler_draws(device, vocab_size, soft_cap):
    torch.manual_seed(0)
    num_rows = 12
    state = DeviceState(num_rows, 64, 16, torch.device("cpu"))
    temperatures = [0.0, 0.7, 1.0, 1.5] * 3
    for row, temperature in enumerate(temperatures):
        params = SamplingParams(max_tokens=5, seed=row * 7919 - 5, temperature=temperature)
        state.apply(StepInput(0, [NewRow(row, [1, 2, 3], 3, 0, [row], params, ())], [], [], [], [], []))
    logits = torch.randn(num_rows, vocab_size) * 2
    known = list(range(3, 3 + num_rows))
    capped = logits if soft_cap is None else soft_cap * torch.tanh(logits / soft_cap)
    expected, _ = Sampler(state).sample(capped.clone(), torch.arange(num_rows), list(range(num_rows)), known, {})
    drawn = torch.empty(num_rows, dtype=torch.int32, device=device)
    rows = torch.arange(num_rows, dtype=torch.int32, device=device)
    places = torch.tensor(known, dtype=torch.int32, device=device)
    Drawing(num_rows, vocab_size, soft_cap, torch.device(device)).draw(
        logits.to(device), rows, places, state.temperature.to(device), state.seed.to(device), drawn
    )
    assert drawn.tolist() == expected.tolist()


def test_logits_that_are_not_numbers_are_told(device):
    logits = torch.zeros(2, 3000, device=device)
    logits[1, 2999] = torch.nan
    drawn = torch.empty(2, dtype=torch.int32, device=device)
    rows = torch.arange(2, dtype=torch.int32, device=device)
    temperature, seed = torch.zeros(2, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    Drawing(2, 3000, None, torch.device(device)).draw(logits, rows, rows, temperature, seed, drawn)
    assert drawn.tolist() == [0, -1]
