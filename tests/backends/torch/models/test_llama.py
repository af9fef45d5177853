"""Llama against Hugging Face: tiny configs with every parameter random, through the whole engine."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from plugserve.core.errors import ModelError
from plugserve.core.model_files.architectures import describe
from tests.core.harness import LocalEngine, hugging_face_greedy, randomise

TINY = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 199,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "odd head_dim": {"head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 1},
    "all heads": {"num_key_value_heads": 6},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "llama3 rope": {"rope_parameters": LLAMA3_ROPE},
}


def build(variant):
    torch.manual_seed(0)
    model = randomise(LlamaForCausalLM(LlamaConfig(**TINY | VARIANTS[variant])).float())
    return model, model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}


def prompts_of(lengths, vocab_size=199):
    rng = random.Random(1)
    return [[rng.randrange(vocab_size) for _ in range(length)] for length in lengths]


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_equal_hugging_face(variant):
    model, config = build(variant)
    prompts = prompts_of([1, 2, 15, 16, 17, 100, 130])
    expected = [hugging_face_greedy(model, prompt, 24) for prompt in prompts]
    with LocalEngine(config, model.state_dict(), tokens=40) as local:
        assert local.generate(prompts, max_tokens=24) == expected


def test_preemption_gives_equal_tokens():
    model, config = build("plain")
    prompts = prompts_of([20, 33, 40, 18, 50, 27])
    expected = [hugging_face_greedy(model, prompt, 60) for prompt in prompts]
    with LocalEngine(config, model.state_dict(), num_blocks=14, max_model_len=128, tokens=24) as local:
        assert local.generate(prompts, max_tokens=60) == expected
        assert local.engine.stats.num_preemptions > 0


def test_logprobs_and_prompt_logprobs_equal_hugging_face():
    model, config = build("plain")
    prompt = prompts_of([45])[0]
    with LocalEngine(config, model.state_dict(), tokens=16) as local:
        done = local.generate_all([prompt], max_tokens=5, num_logprobs=3, num_prompt_logprobs=2)[0]
    with torch.no_grad():
        reference = model(torch.tensor([prompt + done["tokens"]])).logits[0].log_softmax(-1)
    assert len(done["prompt_logprobs"]) == 45
    assert done["prompt_logprobs"][0] is None
    for position, entry in enumerate(done["prompt_logprobs"][1:], start=1):
        check_entry(entry, reference[position - 1], prompt[position], 2)
    for n, entry in enumerate(done["logprobs"]):
        check_entry(entry, reference[44 + n], done["tokens"][n], 3)


def check_entry(entry, logprobs, token, num_top):
    assert entry.token_id == token
    assert entry.logprob == pytest.approx(logprobs[token].item(), abs=1e-4)
    assert entry.rank == int((logprobs > logprobs[token]).sum()) + 1
    assert entry.top_ids == logprobs.topk(num_top).indices.tolist()
    assert entry.top_logprobs == pytest.approx(logprobs.topk(num_top).values.tolist(), abs=1e-4)


def test_missing_stray_and_misshapen_tensors_are_named():
    model, config = build("plain")
    weights = model.state_dict()
    for change, message in (
        (lambda w: w.pop("model.norm.weight"), "lacks 1 tensors, first model.norm.weight"),
        (lambda w: w.update({"model.extra": torch.zeros(1)}), "model.extra has no place"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(7)}), r"model.norm.weight has shape \[7\]"),
    ):
        changed = dict(weights)
        change(changed)
        with pytest.raises(ModelError, match=message):
            LocalEngine(config, changed)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM is not supported; supported are LlamaForCausalLM"),
        ({"architectures": ["LlamaForCausalLM"]}, "no 'num_attention_heads'"),
        (TINY | {"architectures": ["LlamaForCausalLM"], "hidden_act": "relu"}, "activation 'relu'"),
        (TINY | {"architectures": ["LlamaForCausalLM"], "rope_scaling": {"type": "su"}}, "RoPE scaling 'su'"),
        (TINY | {"architectures": ["LlamaForCausalLM"], "rope_scaling": {"type": "yarn"}}, "'yarn' lacks 'factor'"),
    ],
)
def test_what_is_not_supported_is_named(config, message):
    with pytest.raises(ModelError, match=message):
        describe(config)
