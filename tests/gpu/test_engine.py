"""The whole engine on a GPU: equal tokens with captured steps, with eager steps, and on a CPU."""

import pytest
import torch
import transformers

from tests.core.harness import LocalEngine, hugging_face_greedy, randomise

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 192, "intermediate_size": 256,
    "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 600,
    "max_position_embeddings": 512, "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
GEMMA3 = {
    **LLAMA, "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "head_dim": 128, "sliding_window": 24,
    "num_attention_heads": 4, "num_key_value_heads": 1, "rope_local_base_freq": 5000.0, "query_pre_attn_scalar": 128,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6,
}  # fmt: skip
QWEN3 = {**LLAMA, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
PROMPTS = [[(7 * i + 13 * j) % 590 + 1 for j in range(n)] for i, n in enumerate([1, 5, 16, 17, 40, 90, 130])]


def model_of(config):
    values = {key: value for key, value in config.items() if key != "architectures"}
    kind = values.pop("model_type")
    made = transformers.AutoConfig.for_model(kind, **values)
    return randomise(transformers.AutoModelForCausalLM.from_config(made, attn_implementation="eager").float())


@pytest.mark.parametrize("config", [LLAMA, GEMMA3, QWEN3], ids=lambda config: config["model_type"])
def test_captured_steps_equal_hugging_face_in_float32(config):
    model = model_of(config)
    expected = [hugging_face_greedy(model, prompt, 24) for prompt in PROMPTS]
    for enforce_eager in (False, True):
        with LocalEngine(config, model.state_dict(), device="cuda", enforce_eager=enforce_eager) as engine:
            assert engine.generate(PROMPTS, max_tokens=24) == expected


def test_chunked_prompts_and_preemption_change_no_token():
    model = model_of(LLAMA)
    expected = [hugging_face_greedy(model, prompt, 24) for prompt in PROMPTS]
    with LocalEngine(LLAMA, model.state_dict(), device="cuda", tokens=40, num_blocks=20, max_model_len=256) as engine:
        assert engine.generate(PROMPTS, max_tokens=24) == expected
        assert engine.engine.stats.num_preemptions > 0


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.8},
        {"temperature": 1.0, "top_p": 0.9, "top_k": 20},
        {"temperature": 0.7, "repetition_penalty": 1.2, "num_logprobs": 3},
    ],
)
def test_sampling_depends_on_seed_and_position_alone(params):
    model = model_of(LLAMA)
    seen = []
    for enforce_eager in (False, True):
        with LocalEngine(LLAMA, model.state_dict(), device="cuda", enforce_eager=enforce_eager) as engine:
            together = engine.generate(PROMPTS, max_tokens=24, seed=5, **params)
            alone = [engine.generate([prompt], max_tokens=24, seed=5, **params)[0] for prompt in PROMPTS[:3]]
        assert together[:3] == alone
        seen.append(together)
    assert seen[0] == seen[1]


def test_nan_logits_fail_only_their_request():
    model = model_of(LLAMA)
    weights = dict(model.state_dict())
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.embed_tokens.weight"][599] = torch.nan
    with LocalEngine(LLAMA, weights, device="cuda") as engine:
        good, bad = engine.generate_all([PROMPTS[2], [599, 3]], max_tokens=8)
    assert len(good["tokens"]) == 8
    assert "NaN" in bad["error"]


def test_rows_with_and_without_filters_share_a_step():
    """Plain rows are drawn by the kernel, the others by the sampler."""
    model = model_of(LLAMA)
    kinds = [{}, {"temperature": 0.8}, {"temperature": 1.0, "top_p": 0.9, "top_k": 20}, {"repetition_penalty": 1.2}]
    params = [{**kinds[i % len(kinds)], "seed": i} for i in range(len(PROMPTS))]
    seen = []
    for enforce_eager in (False, True):
        with LocalEngine(LLAMA, model.state_dict(), device="cuda", enforce_eager=enforce_eager) as engine:
            done = engine.generate_all(PROMPTS, params, max_tokens=24)
            seen.append([one["tokens"] for one in done])
    assert seen[0] == seen[1]
    plain = [i for i in range(len(PROMPTS)) if i % len(kinds) == 0]
    expected = [hugging_face_greedy(model, PROMPTS[i], 24) for i in plain]
    assert [seen[0][i] for i in plain] == expected
