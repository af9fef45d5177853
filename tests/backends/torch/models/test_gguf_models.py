"""GGUF files of every architecture give the model that they were made from: tiny ones, and Gemma-3-270M itself.

The tiny files are written with the gguf package's own table of names and by the converter's rules: rows of q and k
interleaved for the architecture "llama", norms stored as weight + 1 for Gemma, LongRoPE's divisors as tensors.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from plugserve.backends.torch.weights import iterate_weights
from plugserve.core.model_files.architectures import describe
from plugserve.core.model_files.model_source import read_config, resolve
from tests.backends.torch.models.test_families import CASES, FACTORS, ORIGINAL, ROPES, WINDOW, build, check, prompts_of
from tests.core.harness import LocalEngine
from tests.core.model_files.gguf_samples import write_gguf

ARCHITECTURES = {
    "Llama": "llama",
    "Mistral": "llama",
    "Qwen2": "qwen2",
    "Qwen3": "qwen3",
    "Gemma": "gemma",
    "Gemma2": "gemma2",
    "Gemma3": "gemma3",
    "Phi3": "phi3",
}
FILES = {
    "Llama": ("Llama", {}),
    "Llama, linear": ("Llama", {"rope_parameters": {"rope_theta": 1e4, **ROPES["linear"]}}),
    "Mistral": CASES["Mistral, window"],
    "Qwen2": CASES["Qwen2"],
    "Qwen2, yarn": ("Qwen2", {"rope_parameters": {"rope_theta": 1e4, **ROPES["yarn"]}}),
    "Qwen3": CASES["Qwen3"],
    "Gemma": CASES["Gemma"],
    "Gemma2": ("Gemma2", {"sliding_window": WINDOW, "query_pre_attn_scalar": 16}),
    "Gemma3": (
        "Gemma3",
        {
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 16,
            "num_hidden_layers": 7,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "Phi3": ("Phi3", {"hidden_size": 64, "sliding_window": WINDOW}),
    "Phi3, longrope": (
        "Phi3",
        {
            "hidden_size": 64,
            "original_max_position_embeddings": ORIGINAL,
            "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **FACTORS},
        },
    ),
}


def write_model(path, model, family) -> Path:
    """The model as llama.cpp's converter would write it, unquantised."""
    architecture, config = ARCHITECTURES[family], model.config
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)

    def fill(writer):
        add_metadata(writer, architecture, config)
        for name, tensor in model.state_dict().items():
            if name == "lm_head.weight" and config.tie_word_embeddings:
                continue
            values = tensor.numpy()
            if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
                heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
                values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
            if architecture.startswith("gemma") and name.endswith("norm.weight"):
                values = values + np.float32(1)
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")) or name, values)

    return write_gguf(path, fill, arch=architecture)


def add_metadata(writer, architecture, config) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim) if hasattr(config, "head_dim") else None
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    window = getattr(config, "sliding_window", None)
    if window:
        writer.add_sliding_window(window)
    for key in ("attn", "final"):
        cap = getattr(config, f"{key}_logit_softcapping", None)
        if cap:
            writer.add_float32(f"{architecture}.{key}_logit_softcapping", cap)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope["rope_type"]
    if architecture == "phi3":
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    if kind == "longrope":
        writer.add_tensor("rope_factors_long.weight", np.array(rope["long_factor"], np.float32))
        writer.add_tensor("rope_factors_short.weight", np.array(rope["short_factor"], np.float32))
    elif kind != "default":
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
        if kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


@pytest.mark.parametrize("name", FILES)
def test_tiny_file_equals_the_model_that_it_was_made_from(name, tmp_path):
    family, changes = FILES[name]
    model, _ = build(family, changes)
    source = resolve(str(write_model(tmp_path / "m.gguf", model, family)))
    config = read_config(source)
    prompts = prompts_of((1, 23, ORIGINAL - 8, ORIGINAL + 1, 100))
    with LocalEngine(config, dict(iterate_weights(source, show_progress=False)), tokens=37) as local:
        done = local.generate_all(prompts, max_tokens=8, num_logprobs=20, num_prompt_logprobs=5)
    for prompt, one in zip(prompts, done, strict=True):
        check(model, prompt, one)


@pytest.mark.parametrize(("family", "layers", "expected"), [("Gemma2", 46, 8), ("Gemma2", 45, 16), ("Gemma3", 62, 8)])
def test_gemmas_largest_sizes_scale_scores_by_hidden_size(family, layers, expected, tmp_path):
    """llama.cpp tells the 27B models by their number of layers: hidden_size / heads instead of head_dim."""
    model, _ = build(family, {"num_hidden_layers": layers, "intermediate_size": 8})
    config = read_config(resolve(str(write_model(tmp_path / "m.gguf", model, family))))
    assert describe(config).attention_scale == expected**-0.5


# ---------------------------------------------------------------- Gemma-3-270M


def test_gemma_3_270m_equals_hugging_face(gemma3_270m, gemma3_text):
    """Greedy tokens and logits in float32, with a prompt past the window, chunked and batched."""
    config = read_config(gemma3_270m)
    assert config["sliding_window"] == 512
    config["sliding_window"] = 64  # so that a short prompt is past it
    weights = dict(iterate_weights(gemma3_270m, show_progress=False))
    with torch.device("meta"):
        model = Gemma3ForCausalLM(Gemma3TextConfig(**config, attn_implementation="eager"))
    missing, stray = model.load_state_dict(weights, strict=False, assign=True)
    assert (missing, stray) == (["lm_head.weight"], [])
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    model.model.embed_tokens.embed_scale = torch.tensor(config["hidden_size"] ** 0.5)
    ids = gemma3_text.encode("The capital of France is Paris. " * 20)
    prompts = [ids[:12], ids[:100], [2, 651, 6996]]
    assert len(prompts[1]) > config["sliding_window"]
    with LocalEngine(config, weights, tokens=40, max_model_len=640) as local:
        done = local.generate_all(prompts, max_tokens=8, num_logprobs=20)
    for prompt, one in zip(prompts, done, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + one["tokens"]]), logits_to_keep=9).logits[0, :-1].log_softmax(-1)
        assert logits.argmax(-1).tolist() == one["tokens"]
        for entry, expected in zip(one["logprobs"], logits, strict=True):
            ours = torch.tensor(entry.top_logprobs)
            torch.testing.assert_close(ours, expected[torch.tensor(entry.top_ids)], atol=2e-4, rtol=1e-4)


def test_gemma_3_tokenizer(gemma3_text):
    """Ids that Google's tokenizer gives; text comes back whole."""
    assert gemma3_text.encode("Hello world") == [2, 9259, 1902]
    assert gemma3_text.encode("<start_of_turn>user\nhi<end_of_turn>")[1:] == [105, 2364, 107, 2202, 106]
    for text in (" two  spaces\n\nnew", "¡Hóla! 日本語 \t tab 1234 🙂", "def f(x):\n    return x\n\n\n"):
        assert gemma3_text.tokenizer.decode(gemma3_text.encode(text)) == text
