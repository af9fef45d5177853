"""Weights in page-locked host memory on a GPU: equal tokens with captured and eager steps, adapters and drafts, while
copies are much slower than what they are for; and less device memory."""

import gc

import pytest
import torch

from plugserve.backends.torch.models.make_model import parameter_shapes
from plugserve.backends.torch.runner.model_sources import DraftFiles
from plugserve.backends.torch.weights import dummy_tensor
from plugserve.core.engine.acceptance import DraftPolicy
from tests.core.engine.test_combinations import draft_model
from tests.core.harness import LocalEngine, hugging_face_greedy
from tests.gpu.test_engine import GEMMA3, LLAMA, PROMPTS, QWEN3, model_of
from tests.lora_samples import adapter_tensors, write_adapter

WIDE = {**LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_hidden_layers": 6}
"""A layer's copy takes milliseconds, its computation of a few tokens some ten microseconds."""


@pytest.fixture(scope="module")
def wide():
    return {name: dummy_tensor(name, shape, torch.float32) for name, shape in parameter_shapes(WIDE).items()}


@pytest.mark.parametrize("config", [LLAMA, GEMMA3, QWEN3], ids=lambda config: config["model_type"])
@pytest.mark.parametrize("offload_bytes", [1, 2_000_000, 1 << 30])
def test_tokens_equal_hugging_face_in_float32(config, offload_bytes):
    model = model_of(config)
    expected = [hugging_face_greedy(model, prompt, 24) for prompt in PROMPTS]
    for enforce_eager in (False, True):
        options = {"device": "cuda", "enforce_eager": enforce_eager, "offload_bytes": offload_bytes}
        with LocalEngine(config, model.state_dict(), **options) as engine:
            assert engine.runner.loaded.info.offloaded_weight_bytes > 0
            assert (engine.runner.loaded.steps.captured is None) == enforce_eager
            assert engine.generate(PROMPTS, max_tokens=24) == expected


@pytest.mark.parametrize("enforce_eager", [False, True], ids=["captured", "eager"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_slow_copies_are_never_read_early_nor_overwritten(wide, dtype, enforce_eager):
    options = {"device": "cuda", "dtype": dtype, "enforce_eager": enforce_eager, "max_num_seqs": 8}
    batches = (PROMPTS[2:3], PROMPTS)  # one token a step, and several: different kernels
    params = {"max_tokens": 16, "num_logprobs": 3}
    with LocalEngine(WIDE, wide, **options) as plain:
        expected = [plain.generate_all(prompts, **params) for prompts in batches]
    for offload_bytes in (300 << 20, 8 << 30):
        with LocalEngine(WIDE, wide, offload_bytes=offload_bytes, **options) as offloaded:
            for prompts, answers in zip(batches, expected, strict=True):
                assert offloaded.generate_all(prompts, **params) == answers  # logprobs to the last bit


def test_device_memory_is_freed(wide):
    held = []
    for offload_bytes in (0, 700 << 20):
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        with LocalEngine(WIDE, wide, device="cuda", enforce_eager=True, offload_bytes=offload_bytes) as engine:
            info = engine.runner.loaded.info
            held.append(torch.cuda.memory_allocated() - before)
        assert 700 << 20 <= info.offloaded_weight_bytes < 1 << 30 if offload_bytes else not info.offloaded_weight_bytes
        del engine
    largest = 4 * 3 * WIDE["intermediate_size"] * WIDE["hidden_size"]
    assert held[0] - held[1] >= (700 << 20) - 2 * largest - (1 << 20)


@pytest.mark.parametrize("enforce_eager", [False, True], ids=["captured", "eager"])
def test_adapters_and_drafts_change_no_token(enforce_eager, tmp_path):
    weights = {name: tensor.detach() for name, tensor in model_of(LLAMA).state_dict().items()}
    write_adapter(tmp_path / "1", adapter_tensors(weights, rank=8, seed=1), r=8)
    options = {"device": "cuda", "enforce_eager": enforce_eager, "max_loras": 1, "max_num_seqs": 64}
    answers = []
    for offload_bytes in (0, 2_000_000):
        with LocalEngine(
            LLAMA, weights, offload_bytes=offload_bytes, proposer=draft_model(is_greedy=True),
            draft_policy=DraftPolicy(4, is_adaptive=False), draft_files=DraftFiles(LLAMA, weights.items), **options,
        ) as engine:  # fmt: skip
            engine.load_adapter(1, tmp_path / "1")
            for adapters in ([0] * len(PROMPTS), [0, 1] * 3 + [0]):
                done = engine.generate_all(PROMPTS, adapters=adapters, max_tokens=24)
                answers.append([entry["tokens"] for entry in done])
            assert engine.engine.stats.num_accepted_draft_tokens > 0
    assert answers[:2] == answers[2:]
