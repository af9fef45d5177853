"""Converts GGUF metadata to Hugging Face's config.json keys and sampling defaults."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from typing import Any

from plugserve.core.errors import ModelError
from plugserve.core.model_files.gguf_file import GgufFile


@dataclass(frozen=True, slots=True)
class GgufArchitecture:
    """A GGUF architecture in Hugging Face's terms.

    has_interleaved_rope: rows of q and k are stored for rotation of neighbouring pairs and must be put back.
    norm_offset is what the converter added to every norm weight. has_fused_projections: q, k and v are one tensor, and
    so are gate and up. wide_heads_layers: a model with so many layers scales its scores by hidden_size / heads instead
    of head_dim (llama.cpp knows Gemma's 27B by its layers, too).
    """

    class_name: str
    model_type: str
    has_interleaved_rope: bool = False
    norm_offset: float = 0.0
    has_fused_projections: bool = False
    has_query_scalar: bool = False
    wide_heads_layers: int = 0


GGUF_ARCHITECTURES: dict[str, GgufArchitecture] = {
    "llama": GgufArchitecture("LlamaForCausalLM", "llama", has_interleaved_rope=True),
    "qwen2": GgufArchitecture("Qwen2ForCausalLM", "qwen2"),
    "qwen3": GgufArchitecture("Qwen3ForCausalLM", "qwen3"),
    "gemma": GgufArchitecture("GemmaForCausalLM", "gemma", norm_offset=1.0),
    "gemma2": GgufArchitecture(
        "Gemma2ForCausalLM", "gemma2", norm_offset=1.0, has_query_scalar=True, wide_heads_layers=46
    ),
    "gemma3": GgufArchitecture(
        "Gemma3ForCausalLM", "gemma3_text", norm_offset=1.0, has_query_scalar=True, wide_heads_layers=62
    ),
    "phi3": GgufArchitecture("Phi3ForCausalLM", "phi3", has_fused_projections=True),
}

# Hugging Face's key: GGUF's key after "ARCHITECTURE."
_KEYS = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "num_local_experts": "expert_count",
}
_REQUIRED = (
    "max_position_embeddings",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "rms_norm_eps",
)
_SAMPLING = {
    "temperature": "temp",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
ROPE_FACTORS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"


def gguf_architecture(gguf: GgufFile) -> GgufArchitecture:
    """Raises ModelError for an architecture that isn't known."""
    known = GGUF_ARCHITECTURES.get(gguf.architecture)
    if known is None:
        raise ModelError(
            f"{gguf.path}: GGUF architecture {gguf.architecture!r} is not supported "
            f"(supported: {', '.join(GGUF_ARCHITECTURES)})"
        )
    return known


def gguf_config(gguf: GgufFile) -> dict[str, Any]:
    """A config.json made from the metadata.

    rope_freq_factors, where the file has that tensor (Llama 3), is the list of head_dim / 2 divisors of RoPE's
    frequencies; Hugging Face has no such key.
    """
    architecture = gguf_architecture(gguf)
    config: dict[str, Any] = {"architectures": [architecture.class_name], "model_type": architecture.model_type}
    for key, gguf_key in _KEYS.items():
        value = gguf.metadata.get(f"{gguf.architecture}.{gguf_key}")
        if value is not None:
            config[key] = _uniform(gguf, gguf_key, value)
    missing = [f"{gguf.architecture}.{_KEYS[key]}" for key in _REQUIRED if key not in config]
    if missing:
        raise ModelError(f"{gguf.path}: the GGUF metadata lacks {', '.join(missing)}")
    if config.get("num_local_experts"):
        raise ModelError(f"{gguf.path}: mixture-of-experts GGUF models are not supported")
    config.pop("num_local_experts", None)
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    config.setdefault("rope_theta", 10000.0)
    if architecture.model_type == "llama" and config.get("sliding_window"):
        config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    if architecture.has_query_scalar:
        is_wide = config["num_hidden_layers"] == architecture.wide_heads_layers
        wide_head = config["hidden_size"] // config["num_attention_heads"]
        config["query_pre_attn_scalar"] = wide_head if is_wide else config["head_dim"]
    config["rms_norm_eps"] = _short_float(config["rms_norm_eps"])
    config["vocab_size"] = _vocab_size(gguf)
    config["tie_word_embeddings"] = "output.weight" not in gguf.tensors
    config["attention_bias"] = "blk.0.attn_q.bias" in gguf.tensors
    config["mlp_bias"] = "blk.0.ffn_up.bias" in gguf.tensors
    config.update(_rope(gguf), **_token_ids(gguf))
    return config


def _uniform(gguf: GgufFile, key: str, value: Any) -> Any:
    """A value given for each layer, as one value; layers that differ are refused."""
    if not isinstance(value, list):
        return value
    if not value or any(item != value[0] for item in value):
        raise ModelError(f"{gguf.path}: GGUF models whose layers differ in {key} are not supported")
    return value[0]


def _short_float(value: float) -> float:
    """The shortest decimal that is the same float32: 9.999999747378752e-06 is 1e-05."""
    wanted = struct.pack("<f", value)
    return next(
        float(text) for digits in range(1, 10) if struct.pack("<f", float(text := f"{value:.{digits}g}")) == wanted
    )


def _vocab_size(gguf: GgufFile) -> int:
    """Rows of the embedding, which are the number of logits; the metadata may differ."""
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(f"{gguf.path}: the tensor 'token_embd.weight' is missing or not a matrix")
    return embedding.shape[0]


def _token_ids(gguf: GgufFile) -> dict[str, Any]:
    names = ("bos", "eos")
    ids = {f"{name}_token_id": gguf.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in names}
    return {key: value for key, value in ids.items() if value is not None}


def _rope(gguf: GgufFile) -> dict[str, Any]:
    prefix = f"{gguf.architecture}.rope.scaling."
    kind = gguf.metadata.get(prefix + "type")
    found: dict[str, Any] = {}
    if kind not in (None, "none"):
        scaling: dict[str, Any] = {"rope_type": kind, "factor": gguf.metadata.get(prefix + "factor", 1.0)}
        original = gguf.metadata.get(prefix + "original_context_length")
        if original is not None:
            scaling["original_max_position_embeddings"] = original
        found["rope_scaling"] = scaling
    local_theta = gguf.metadata.get(f"{gguf.architecture}.rope.freq_base_swa")
    if local_theta is not None:
        found["rope_local_base_freq"] = local_theta
    if gguf.architecture == "phi3":
        found.update(_phi3_rope(gguf))
    factors = _rope_factors(gguf, ROPE_FACTORS)
    return {**found, "rope_freq_factors": factors} if factors else found


def _phi3_rope(gguf: GgufFile) -> dict[str, Any]:
    """Part of each head is rotated, and long models hold LongRoPE's divisors as tensors."""
    found: dict[str, Any] = {}
    size, heads = (gguf.metadata.get(f"phi3.{key}") for key in ("embedding_length", "attention.head_count"))
    rotated = gguf.metadata.get("phi3.rope.dimension_count")
    if size and heads and rotated:
        found["partial_rotary_factor"] = rotated / (size // heads)
    original = gguf.metadata.get("phi3.rope.scaling.original_context_length")
    if original is not None:
        found["original_max_position_embeddings"] = original
    long, short = (_rope_factors(gguf, name) for name in (LONG_FACTORS, SHORT_FACTORS))
    if long and short:
        scaling: dict[str, Any] = {"rope_type": "longrope", "long_factor": long, "short_factor": short}
        attention_factor = gguf.metadata.get("phi3.rope.scaling.attn_factor")
        if attention_factor is not None:
            scaling["attention_factor"] = attention_factor
        found["rope_scaling"] = scaling
    return found


def _rope_factors(gguf: GgufFile, name: str) -> list[float]:
    tensor = gguf.tensors.get(name)
    if tensor is None:
        return []
    if tensor.type_name != "F32":
        raise ModelError(f"{gguf.path}: tensor {name!r} should be F32, got {tensor.type_name}")
    with gguf.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return list(struct.unpack_from(f"<{tensor.num_bytes // 4}f", data, tensor.offset))


def gguf_sampling_defaults(gguf: GgufFile) -> dict[str, Any]:
    """The general.sampling.* entries under generation_config.json's names; {} for none."""
    found = {key: gguf.metadata.get(f"general.sampling.{name}") for key, name in _SAMPLING.items()}
    return {key: value for key, value in found.items() if value is not None}
