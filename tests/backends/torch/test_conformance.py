"""The torch runner keeps the contract, and so does the kit's fake."""

import torch

from plugserve.backends.torch.models.make_model import parameter_shapes
from plugserve.backends.torch.runner.load_choices import RunnerSettings
from plugserve.backends.torch.runner.memory_plan import MemoryRequest
from plugserve.backends.torch.runner.model_sources import ModelSources
from plugserve.backends.torch.runner.torch_runner import TorchRunner
from plugserve.core.model_files.families import FAMILIES
from plugserve.plugins.attention.torch_sdpa import make_torch_sdpa
from plugserve.testing import FakeRunner, RunnerConformance
from plugserve.testing.contexts import attention_context

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
SETTINGS = RunnerSettings(
    dtype="float32",
    device="cpu",
    num_threads=1,
    max_model_len=256,
    model_max_len=256,
    block_size=16,
    max_num_seqs=8,
    max_num_batched_tokens=512,
    memory=MemoryRequest(None, 60, 0.9, host_bytes=1 << 20),
)


def random_weights():
    generator = torch.Generator().manual_seed(0)
    for name, shape in parameter_shapes(CONFIG).items():
        yield name, torch.randn(tuple(shape), generator=generator) * (0.3 if len(shape) == 1 else shape[-1] ** -0.5)


def sources():
    """A tiny Llama."""
    return ModelSources(CONFIG, random_weights, lambda spec: make_torch_sdpa(attention_context(spec)), FAMILIES)


class TestTorchRunner(RunnerConformance):
    def make_runner(self):
        return TorchRunner(sources(), SETTINGS)


class TestFakeRunner(RunnerConformance):
    honours_sampling = False
    honours_logprobs = False

    def make_runner(self):
        return FakeRunner(num_host_slots=4)
