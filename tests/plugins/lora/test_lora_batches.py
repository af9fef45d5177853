"""LoRA against merged weights: several adapters in one batch, through the whole engine, in float32.

Tokens must be equal, logprobs within 1e-4 (B (A x) is summed in another order than (W + B A) x).
"""

from __future__ import annotations

import functools

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from plugserve.core.engine.acceptance import DraftPolicy
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from plugserve.plugins.speculative.ngram import NgramProposer
from tests.backends.torch.models.test_llama import TINY, prompts_of
from tests.core.harness import LocalEngine, randomise
from tests.lora_samples import ALL, adapter_tensors, merged, write_adapter

LENGTHS = [1, 2, 15, 16, 17, 60, 33, 5, 40]


@functools.cache
def llama():
    torch.manual_seed(0)
    model = randomise(LlamaForCausalLM(LlamaConfig(**TINY)).float())
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    return config, {name: tensor.detach() for name, tensor in model.state_dict().items()}


def eight(tmp_path, weights):
    """Folders and merged weights of eight adapters of different ranks, targets and scalings, by id from 1."""
    variants = [
        ({}, {}, {}),
        ({"rank": 4}, {"r": 4, "lora_alpha": 4}, {"alpha": 4.0}),
        ({"rank": 16}, {"r": 16, "use_rslora": True}, {"uses_rslora": True}),
        ({"targets": ("q_proj", "v_proj")}, {"target_modules": ["q_proj", "v_proj"]}, {}),
        (
            {"targets": ("down_proj",), "rank": 1},
            {"target_modules": ["down_proj"], "r": 1, "lora_alpha": 1},
            {"alpha": 1.0},
        ),
        ({"ranks": {"k_proj": 2, "mlp.up_proj": 3}}, {"rank_pattern": {"k_proj": 2, "mlp.up_proj": 3}}, {}),
        ({"layers": (1,)}, {"layers_to_transform": [1]}, {}),
        ({}, {"alpha_pattern": {"^model.layers.*.o_proj": 40}}, {"alphas": {"o_proj": 40.0}}),
    ]
    adapters = {}
    for id, (made, config, scaling) in enumerate(variants, start=1):
        tensors = adapter_tensors(weights, seed=id, **made)
        adapters[id] = (write_adapter(tmp_path / str(id), tensors, **config), merged(weights, tensors, **scaling))
    return adapters


def alone(config, weights, prompt, max_tokens=12):
    with LocalEngine(config, weights) as local:
        return local.generate([prompt], max_tokens=max_tokens)[0]


@pytest.mark.parametrize("tokens", [512, 24], ids=["whole prompts", "chunked prefill"])
def test_eight_adapters_in_one_batch_equal_merged_weights(tmp_path, tokens):
    config, weights = llama()
    adapters = eight(tmp_path, weights)
    prompts = prompts_of(LENGTHS)
    ids = [0, *adapters]
    expected = [
        alone(config, adapters[id][1] if id else weights, prompt) for id, prompt in zip(ids, prompts, strict=True)
    ]
    with LocalEngine(config, weights, max_loras=8, tokens=tokens) as local:
        for id, (folder, _) in adapters.items():
            local.load_adapter(id, folder)
        done = local.generate_all(prompts, adapters=ids, max_tokens=12)
        assert [entry["tokens"] for entry in done] == expected
        assert len({tuple(entry) for entry in expected}) == len(expected)
        # several sequences of one adapter, in an order in which they don't lie together
        mixed = [ids[n % 3] for n in range(9)]
        again = local.generate_all([prompts[5]] * 9, adapters=mixed, max_tokens=12)
    for id, entry in zip(mixed, again, strict=True):
        assert entry["tokens"] == alone(config, adapters[id][1] if id else weights, prompts[5])


def test_logprobs_equal_merged_weights(tmp_path):
    config, weights = llama()
    tensors = adapter_tensors(weights)
    folder = write_adapter(tmp_path / "a", tensors)
    prompt = prompts_of([50])[0]
    returned = []
    for own, adapters in ((merged(weights, tensors), None), (weights, [1])):
        with LocalEngine(config, own, max_loras=1) as local:
            local.load_adapter(1, folder)
            done = local.generate_all([prompt], adapters=adapters, max_tokens=8, num_logprobs=5, num_prompt_logprobs=1)[
                0
            ]
        returned.append([entry.logprob for entry in done["logprobs"] + done["prompt_logprobs"][1:]])
    assert returned[1] == pytest.approx(returned[0], abs=1e-4)


def test_rows_without_an_adapter_are_unchanged_and_preemption_and_prefix_cache_change_no_token(tmp_path):
    config, weights = llama()
    adapters = eight(tmp_path, weights)
    prompts = prompts_of([20, 33, 40, 18, 50, 27])
    prompts = [prompts[4][:32] + prompt for prompt in prompts]  # a shared beginning, which must not be shared
    ids = [0, 1, 0, 2, 1, 0]
    expected = [
        alone(config, adapters[id][1] if id else weights, prompt, 50) for id, prompt in zip(ids, prompts, strict=True)
    ]
    limits = {"num_blocks": 18, "max_model_len": 160, "tokens": 24}
    with LocalEngine(config, weights, max_loras=2, prefix_cache=BlockHashCache(), **limits) as local:
        for id in (1, 2):
            local.load_adapter(id, adapters[id][0])
        for _ in range(2):  # the second time from the cache
            done = local.generate_all(prompts, adapters=ids, max_tokens=50)
            assert [entry["tokens"] for entry in done] == expected
        assert local.engine.stats.num_preemptions > 0
        assert local.engine.stats.num_prefix_hit_tokens > 0


def test_more_adapters_than_slots_are_all_served(tmp_path):
    config, weights = llama()
    adapters = eight(tmp_path, weights)
    prompt = prompts_of([30])[0]
    ids = [1, 2, 3, 4, 5, 6, 7, 8] * 2 + [0]
    with LocalEngine(config, weights, max_loras=2) as local:
        for id, (folder, _) in adapters.items():
            local.load_adapter(id, folder)
        done = local.generate_all([prompt] * len(ids), adapters=ids, max_tokens=10)
        assert local.engine.adapters.num_slots_in_use == 2
        assert local.engine.snapshot().num_adapter_swaps >= 8
    for id, entry in zip(ids, done, strict=True):
        assert entry["tokens"] == alone(config, adapters[id][1] if id else weights, prompt, 10), id


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 99,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FAMILIES = {
    "Qwen2ForCausalLM": (Qwen2Config, Qwen2ForCausalLM, {}, ALL),
    "Gemma2ForCausalLM": (Gemma2Config, Gemma2ForCausalLM, {"head_dim": 16, "sliding_window": 16}, ALL),
    "Phi3ForCausalLM": (Phi3Config, Phi3ForCausalLM, {}, ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_apply_to_every_family(tmp_path, name):
    config_class, model_class, extra, targets = FAMILIES[name]
    torch.manual_seed(0)
    model = randomise(model_class(config_class(**SMALL | extra)).float())
    config = model.config.to_dict() | {"architectures": [name]}
    weights = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    tensors = adapter_tensors(weights, targets=targets)
    folder = write_adapter(tmp_path / "a", tensors, target_modules=list(targets))
    prompts = prompts_of([3, 20, 40], 99)
    own = merged(weights, tensors)
    with LocalEngine(config, own, max_model_len=256) as local:
        expected = local.generate(prompts)
    with LocalEngine(config, weights, max_loras=1, max_model_len=256) as local:
        local.load_adapter(1, folder)
        done = local.generate_all(prompts, adapters=[1, 1, 1])
        without = local.generate(prompts)
    assert [entry["tokens"] for entry in done] == expected
    assert without != expected


def test_rows_with_adapters_speculate(tmp_path):
    """Rows with adapters speculate too: the adapted model verifies the drafts."""
    config, weights = llama()
    adapters = eight(tmp_path, weights)
    prompts = [prompt * 3 for prompt in prompts_of([12, 9, 15, 7])]  # repetitions, for n-grams to find
    ids = [0, 1, 3, 1]
    expected = [
        alone(config, adapters[id][1] if id else weights, prompt, 60) for id, prompt in zip(ids, prompts, strict=True)
    ]
    speculation = {"proposer": lambda **facts: NgramProposer(3, 1), "draft_policy": DraftPolicy(4, is_adaptive=False)}
    with LocalEngine(config, weights, max_loras=2, tokens=64, **speculation) as local:
        for id in (1, 3):
            local.load_adapter(id, adapters[id][0])
        done = local.generate_all(prompts, adapters=ids, max_tokens=60)
        assert local.engine.stats.num_draft_tokens > 0
    assert [entry["tokens"] for entry in done] == expected
