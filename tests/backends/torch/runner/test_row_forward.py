"""The forward pass over rows of the device state: tokens of one row computed as rows of their own."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from plugserve.backends.torch.models.make_model import make_model
from plugserve.backends.torch.runner.device_state import DeviceState
from plugserve.backends.torch.runner.row_forward import RowForward
from plugserve.core.contracts.runner import NewRow, StepInput
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.plugins.attention.torch_sdpa import make_torch_sdpa
from plugserve.testing.contexts import attention_context
from tests.core.engine.test_combinations import CONFIG
from tests.core.harness import randomise

CPU = torch.device("cpu")
TEXTS = [[3, 14, 15, 9, 26, 5, 35, 8, 9, 7], [2, 7, 18, 28, 18, 2]]
NUM_COMPUTED = [6, 2]


@pytest.fixture
def forward():
    """Two rows, of which NUM_COMPUTED tokens have keys and values."""
    torch.manual_seed(0)
    model = randomise(LlamaForCausalLM(LlamaConfig(**CONFIG)).float())
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    decoder = make_model(config)
    decoder.allocate(dtype=torch.float32, device=CPU, max_positions=64)
    decoder.load(model.state_dict().items())
    attention_spec = decoder.attention_spec("float32", "cpu")
    attention = make_torch_sdpa(attention_context(attention_spec))
    layout = attention.kv_layout(attention_spec)
    attention.prepare(64, 4)
    kv = [
        torch.zeros([8 if part == "num_blocks" else int(part) for part in layout.shape])
        for _ in range(attention_spec.num_layers)
    ]
    state = DeviceState(4, 64, 16, decoder.vocab_size, CPU)
    for row, text in enumerate(TEXTS):
        params = SamplingParams(max_tokens=9, seed=0)
        state.apply(StepInput(0, [NewRow(row, text, len(text), 0, [2 + 3 * row], params, ())], [], [], [], [], []))
    forward = RowForward(decoder, state, attention, kv)
    starts = torch.tensor([0, NUM_COMPUTED[0], sum(NUM_COMPUTED)], dtype=torch.int32)
    forward.last_hidden(torch.tensor([0, 1]), starts, NUM_COMPUTED, NUM_COMPUTED)
    state.num_computed[:2] = torch.tensor(NUM_COMPUTED)

    def logits_of(rows, offsets, context_lens):
        """Of one token of each row; and context lengths."""
        starts = torch.arange(len(rows) + 1, dtype=torch.int32)
        places = torch.tensor(rows), starts, [1] * len(rows), context_lens, torch.tensor(offsets, dtype=torch.int32)
        hidden, lengths = forward.last_hidden(*places)
        return decoder.logits(hidden), lengths

    return logits_of, model


@torch.inference_mode()
def test_a_row_that_stands_there_for_each_of_its_tokens_gives_each_tokens_logits(forward):
    """So drafts are verified in captured steps, and so a draft model catches up."""
    logits_of, model = forward
    logits, lengths = logits_of([0, 0, 0, 1, 1], [0, 1, 2, 0, 1], [7, 8, 9, 3, 4])
    assert lengths.tolist() == [7, 8, 9, 3, 4]
    whole = [model(torch.tensor([text])).logits[0] for text in TEXTS]
    expected = torch.cat((whole[0][6:9], whole[1][2:4]))
    assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_tokens_before_those_that_are_computed_can_be_computed_again(forward):
    logits_of, model = forward
    logits, lengths = logits_of([0], [-2], [5])
    assert lengths.tolist() == [5]
    assert torch.allclose(logits[0], model(torch.tensor([TEXTS[0]])).logits[0, 4], rtol=1e-4, atol=1e-5)
