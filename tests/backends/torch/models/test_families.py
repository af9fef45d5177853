"""Every architecture and RoPE kind against Hugging Face: tiny configs, every parameter random, the whole engine.

Prompts are longer than windows and than RoPE's original length, query heads share key heads, and head_dim is not
hidden_size / heads. The reference sees the prompt and the engine's tokens in one forward pass: the engine's tokens must
be its greedy choice, and the engine's distributions its own.
"""

from __future__ import annotations

import random

import pytest
import torch
import transformers

from plugserve.core.errors import ModelError
from plugserve.core.model_files.architectures import describe
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from tests.core.harness import LocalEngine, hugging_face_greedy, randomise

VOCAB, ORIGINAL, WINDOW, MAX_TOKENS = 131, 48, 24, 8
LENGTHS = (1, 23, 25, 70, 130)
TINY = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
FACTORS = {"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [2.0 + 0.7 * i for i in range(8)]}
ROPES = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "yarn with every option": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
        "beta_fast": 8.0,
        "beta_slow": 0.5,
        "mscale": 1.2,
        "mscale_all_dim": 0.7,
        "truncate": False,
    },
    "longrope": {"rope_type": "longrope", "original_max_position_embeddings": ORIGINAL, **FACTORS},
    "longrope with factor": {
        "rope_type": "longrope",
        "original_max_position_embeddings": ORIGINAL,
        "factor": 3.0,
        **FACTORS,
    },
}
SLIDING = {"use_sliding_window": True, "sliding_window": WINDOW}
ALTERNATING = ["full_attention", "sliding_attention"] * 2
PHI3 = {"hidden_size": 64, "original_max_position_embeddings": ORIGINAL}
CASES = {
    **{
        f"Llama, {kind}": ("Llama", {"rope_parameters": {"rope_theta": 1000.0, **rope}}) for kind, rope in ROPES.items()
    },
    "Mistral, window": ("Mistral", {"sliding_window": WINDOW}),
    "Mistral, no window": ("Mistral", {"sliding_window": None}),
    "Mistral, yarn": ("Mistral", {"sliding_window": WINDOW, "rope_parameters": {"rope_theta": 5e3, **ROPES["yarn"]}}),
    "Qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "Qwen2, window in upper layers": ("Qwen2", SLIDING | {"max_window_layers": 2}),
    "Qwen2, layer types": ("Qwen2", SLIDING | {"layer_types": ALTERNATING}),
    "Qwen3": ("Qwen3", {}),
    "Qwen3, biases, window": ("Qwen3", SLIDING | {"attention_bias": True, "max_window_layers": 1}),
    "Gemma": ("Gemma", {}),
    "Gemma2": ("Gemma2", {"sliding_window": WINDOW, "query_pre_attn_scalar": 24}),
    "Gemma2, tight caps, biases": (
        "Gemma2",
        {
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 2.0,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "Gemma3": ("Gemma3", {"sliding_window": WINDOW, "query_pre_attn_scalar": 24}),
    "Gemma3, scaled, layer types": (
        "Gemma3",
        {
            "sliding_window": WINDOW,
            "layer_types": ALTERNATING,
            "final_logit_softcapping": 5.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
    ),
    "Phi3": ("Phi3", {"sliding_window": WINDOW}),
    "Phi3, part of each head": ("Phi3", PHI3 | {"partial_rotary_factor": 0.5}),
    "Phi3, longrope": (
        "Phi3",
        PHI3
        | {
            "partial_rotary_factor": 0.5,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1000.0,
                "partial_rotary_factor": 0.5,
                "short_factor": [1.0, 1.1, 1.3, 1.6],
                "long_factor": [1.5, 2.5, 4.0, 6.0],
            },
        },
    ),
}


def build(family, changes):
    """(Hugging Face's model with every parameter random, its config as a config.json would have it)."""
    torch.manual_seed(0)
    model_class = getattr(transformers, f"{family}ForCausalLM")
    config = model_class.config_class(**{**TINY, **changes}, attn_implementation="eager")
    model = randomise(model_class(config).float())
    return model, {**model.config.to_dict(), "architectures": [model_class.__name__]}


def prompts_of(lengths):
    rng = random.Random(2)
    return [[rng.randrange(VOCAB) for _ in range(length)] for length in lengths]


@torch.no_grad()
def check(model, prompt, done):
    """done's tokens are the model's greedy ones, each given those before it, and its logprobs are the model's."""
    tokens = done["tokens"]
    reference = model(torch.tensor([prompt + tokens])).logits[0].log_softmax(-1)[:-1]
    generated = reference[len(prompt) - 1 :]
    assert generated.argmax(-1).tolist() == tokens
    for entry, expected in zip(done["logprobs"], generated, strict=True):
        assert_logprobs(entry, expected)
    for entry, expected in zip(done["prompt_logprobs"][1:], reference, strict=False):
        assert_logprobs(entry, expected)


def assert_logprobs(entry, expected):
    ours = torch.tensor(entry.top_logprobs)
    torch.testing.assert_close(ours, expected[torch.tensor(entry.top_ids)], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_tokens_and_logits_equal_hugging_face(name):
    model, config = build(*CASES[name])
    prompts = prompts_of(LENGTHS)
    if "longrope" in name:  # growing past the original length is a test of its own
        prompts = prompts_of((1, ORIGINAL - MAX_TOKENS, ORIGINAL + 1, 130))
    with LocalEngine(config, model.state_dict(), tokens=37) as local:
        done = local.generate_all(prompts, max_tokens=MAX_TOKENS, num_logprobs=VOCAB, num_prompt_logprobs=5)
    for prompt, one in zip(prompts, done, strict=True):
        assert len(one["tokens"]) == MAX_TOKENS
        check(model, prompt, one)


DYNAMIC = {"max_position_embeddings": ORIGINAL, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}


@pytest.mark.parametrize("num_blocks", [256, 20])
def test_dynamic_rope_follows_each_sequences_own_length(num_blocks):
    """As transformers generates for one sequence alone: chunked, batched, preempted and growing past the context."""
    model, config = build("Llama", DYNAMIC)
    prompts = prompts_of([ORIGINAL - 10, 130, 70, 5, ORIGINAL, ORIGINAL + 1])
    expected = []
    for prompt in prompts:
        model(torch.tensor([[1]]))  # transformers remembers the longest sequence until it sees a short one
        expected.append(hugging_face_greedy(model, prompt, 20))
    with LocalEngine(config, model.state_dict(), tokens=33, num_blocks=num_blocks, max_model_len=200) as local:
        assert local.generate(prompts, max_tokens=20) == expected
        assert (local.engine.stats.num_preemptions > 0) == (num_blocks == 20)


@pytest.mark.parametrize("host_bytes", [0, 1 << 22])
@pytest.mark.parametrize("num_blocks", [256, 20])
def test_longrope_sequence_that_outgrows_the_original_length_is_computed_anew(num_blocks, host_bytes):
    """As transformers' Phi-3 does: beyond the original length all keys have the long factors."""
    model, config = build(*CASES["Phi3, longrope"])
    prompts = prompts_of([ORIGINAL - 1, ORIGINAL - 10, ORIGINAL, ORIGINAL - 5, ORIGINAL + 1, 20, 130])
    expected = [hugging_face_greedy(model, prompt, 20) for prompt in prompts]
    with LocalEngine(
        config, model.state_dict(), tokens=33, num_blocks=num_blocks, max_model_len=200, host_bytes=host_bytes
    ) as local:
        assert local.generate(prompts, max_tokens=20) == expected
        stats = local.engine.stats
        assert (stats.num_preemptions > 0) == (num_blocks == 20)
        assert (stats.num_swap_preemptions > 0) == (num_blocks == 20 and host_bytes > 0)


@pytest.mark.parametrize("case", [("Llama", DYNAMIC), CASES["Phi3, longrope"]])
def test_prefix_cache_keeps_short_and_long_sequences_apart(case):
    """A long prompt that starts as a short one has other keys for the same tokens."""
    model, config = build(*case)
    long = prompts_of([130])[0]
    prompts = [long[:33], long, long[:40], long[:100], long]
    with LocalEngine(config, model.state_dict()) as local:
        expected = [local.generate([prompt], max_tokens=20)[0] for prompt in prompts]
    with LocalEngine(config, model.state_dict(), prefix_cache=BlockHashCache()) as local:
        assert [local.generate([prompt], max_tokens=20)[0] for prompt in prompts] == expected
        assert local.engine.stats.num_prefix_hit_tokens >= 32 + 128


# ---------------------------------------------------------------- configs


@pytest.mark.parametrize("rope", ["linear", "llama3", "yarn", "longrope"])
def test_both_forms_of_rope_settings_say_the_same(rope):
    new = {**TINY, "architectures": ["LlamaForCausalLM"], "rope_parameters": {"rope_theta": 500.0, **ROPES[rope]}}
    old = {**TINY, "architectures": ["LlamaForCausalLM"], "rope_theta": 500.0, "rope_scaling": dict(ROPES[rope])}
    assert describe(new) == describe(old)
    old["rope_scaling"]["type"] = old["rope_scaling"].pop("rope_type")
    assert describe(new) == describe(old)


def test_gemma3_settings_of_before_transformers_5_say_the_same():
    _, new = build(*CASES["Gemma3, scaled, layer types"])
    old = {key: value for key, value in new.items() if key != "rope_parameters"}
    old |= {"rope_theta": 1e5, "rope_local_base_freq": 500.0, "rope_scaling": {"type": "linear", "factor": 8.0}}
    assert describe(old) == describe(new)


@pytest.mark.parametrize("name", CASES)
def test_sparse_config_means_what_transformers_defaults_mean(name):
    """A config.json with only what was set describes the same model as one with everything written out."""
    family, changes = CASES[name]
    _, full = build(family, changes)
    sparse = {**TINY, **changes, "architectures": full["architectures"]}
    assert describe(sparse) == describe(full)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("Qwen2", {"layer_types": ["full_attention"] * 3 + ["chunked_attention"]}, "layer type 'chunked_attention'"),
        ("Qwen3", {"layer_types": ["full_attention"] * 3}, "layer_types names 3 layers of 4"),
        ("Gemma2", {"use_bidirectional_attention": True}, "Gemma2ForCausalLM with use_bidirectional_attention"),
        ("Gemma2", {"hidden_activation": "relu"}, "activation 'relu' is not supported"),
        ("Llama", {"num_key_value_heads": 3}, "4 attention heads can't share 3 key-value heads"),
        ("Llama", {"rope_scaling": {"type": "llama3", "factor": 2}}, "RoPE scaling 'llama3' lacks 'low_freq_factor'"),
        ("Phi3", {"partial_rotary_factor": 0.7}, "rotates an odd number"),
    ],
)
def test_what_is_not_supported_is_named(family, changes, message):
    with pytest.raises(ModelError, match=message):
        describe({**TINY, **changes, "architectures": [f"{family}ForCausalLM"]})


# ---------------------------------------------------------------- checkpoints


def test_gemma3_with_vision_is_served_text_only():
    """Both layouts of names that such checkpoints have; the vision tower's tensors are passed over."""
    model, config = build(*CASES["Gemma3"])
    outer = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        **{k: v for k, v in config.items() if k != "architectures"},
    }
    prompts = prompts_of([30])
    expected = [hugging_face_greedy(model, prompts[0], 6)]
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    vision = {"vision_tower.vision_model.x.weight": torch.zeros(2), "multi_modal_projector.y": torch.zeros(2)}
    old = {"language_model." + name: tensor for name, tensor in weights.items()} | vision
    new = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in weights.items()}
    new |= {"model." + name: tensor for name, tensor in vision.items()}
    for layout in (old, new):
        with LocalEngine(outer, layout) as local:
            assert local.generate(prompts, max_tokens=6) == expected


def test_half_of_a_fused_projection_is_missed():
    model, config = build(*CASES["Phi3"])
    weights = model.state_dict()
    del weights["model.layers.2.mlp.gate_up_proj.weight"]
    with pytest.raises(ModelError, match=r"lacks 2 tensors, first model\.layers\.2\.mlp\.gate_proj\.weight"):
        LocalEngine(config, weights)
    weights["model.layers.1.self_attn.q_proj.weight"] = torch.zeros(64, 32)
    with pytest.raises(ModelError, match=r"model\.layers\.1\.self_attn\.q_proj\.weight has no place"):
        LocalEngine(config, weights)
