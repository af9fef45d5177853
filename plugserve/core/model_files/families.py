"""The built-in architectures: each a function from a Hugging Face config to a DecoderSpec. Torch-free.

A key that a config lacks has the value that transformers' config class of that architecture gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from plugserve.core.contracts.model import ROPE_KINDS, DecoderSpec, RopeSpec
from plugserve.core.errors import ModelError

Config = Mapping[str, Any]

_SLIDING, _FULL = "sliding_attention", "full_attention"
_DEFAULT_CONTEXT = 2048
_VISION = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
_NEEDS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}


# ---------------------------------------------------------------- what architectures share


def llama_like(config: Config, architecture: str, **differences: Any) -> DecoderSpec:
    """The spec of a Llama-like config. differences are DecoderSpec's fields, and override config's."""
    num_heads = config["num_attention_heads"]
    fields: dict[str, Any] = {
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "num_heads": num_heads,
        "num_kv_heads": config.get("num_key_value_heads") or num_heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // num_heads,
        "vocab_size": config["vocab_size"],
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "activation": config.get("hidden_act", "silu"),
        "ties_embeddings": bool(config.get("tie_word_embeddings", False)),
    }
    if "ropes" not in differences:
        fields["ropes"] = (read_rope(config),)
    return DecoderSpec(architecture=architecture, **{**fields, **differences})


def read_rope(config: Config, scaling: Mapping[str, Any] | None = None, theta: float = 10000.0) -> RopeSpec:
    """RopeSpec from either form: rope_parameters (transformers 5), or rope_theta with rope_scaling.

    scaling is that dict when it lies elsewhere; theta is the default.
    """
    scaling = dict((config.get("rope_scaling") or config.get("rope_parameters") or {}) if scaling is None else scaling)
    theta = float(scaling.pop("rope_theta", None) or config.get("rope_theta") or theta)
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    scaling.pop("partial_rotary_factor", None)  # most architectures ignore it and rotate whole heads
    if kind not in ROPE_KINDS:
        raise ModelError(f"RoPE scaling {kind!r} is not supported; supported are {', '.join(ROPE_KINDS)}")
    context = config.get("max_position_embeddings") or _DEFAULT_CONTEXT
    if kind in ("llama3", "yarn", "longrope"):
        beside = config.get("original_max_position_embeddings")
        scaling["original_max_position_embeddings"] = (
            beside or scaling.get("original_max_position_embeddings") or context
        )
    missing = [key for key in _NEEDS.get(kind, ()) if scaling.get(key) is None]
    if missing:
        raise ModelError(f"RoPE scaling {kind!r} lacks {missing[0]!r} in the model's config")
    return RopeSpec(theta, kind, scaling, context=context)


def layer_windows(config: Config, layer_types: list[str], window: int | None) -> tuple[int | None, ...]:
    """Each layer's window; a config's own layer_types override layer_types. () when no layer has one."""
    layer_types = list(config.get("layer_types") or layer_types)
    unknown = sorted(set(layer_types) - {_SLIDING, _FULL})
    if unknown:
        raise ModelError(f"layer type {unknown[0]!r} is not supported; supported are {_FULL}, {_SLIDING}")
    if len(layer_types) != config["num_hidden_layers"]:
        raise ModelError(f"layer_types names {len(layer_types)} layers of {config['num_hidden_layers']}")
    if window is None or _SLIDING not in layer_types:
        return ()
    return tuple(window if one == _SLIDING else None for one in layer_types)


def _refuse(config: Config, key: str, architecture: str) -> None:
    if config.get(key):
        raise ModelError(f"{architecture} with {key} is not supported")


# ---------------------------------------------------------------- architectures


def llama(config: Config) -> DecoderSpec:
    """Llama 2 and 3, SmolLM2, and everything saved under that architecture"""
    has_bias = bool(config.get("attention_bias", False))
    return llama_like(
        config,
        "LlamaForCausalLM",
        has_qkv_bias=has_bias,
        has_output_bias=has_bias,
        has_mlp_bias=bool(config.get("mlp_bias", False)),
    )


def mistral(config: Config) -> DecoderSpec:
    """Mistral, Mistral Nemo and Small (text); one sliding window or none"""
    window = config.get("sliding_window", 4096)
    return llama_like(config, "MistralForCausalLM", windows=(window,) * config["num_hidden_layers"] if window else ())


def _qwen(config: Config, architecture: str, **differences: Any) -> DecoderSpec:
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
    first = config.get("max_window_layers", 28)
    layer_types = [_SLIDING if window is not None and i >= first else _FULL for i in range(config["num_hidden_layers"])]
    return llama_like(config, architecture, windows=layer_windows(config, layer_types, window), **differences)


def qwen2(config: Config) -> DecoderSpec:
    """Qwen2, Qwen2.5, QwQ, DeepSeek-R1 distilled into them; biases on q, k and v"""
    return _qwen(config, "Qwen2ForCausalLM", has_qkv_bias=True)


def qwen3(config: Config) -> DecoderSpec:
    """Qwen3 (dense); norms on q and k"""
    has_bias = bool(config.get("attention_bias", False))
    return _qwen(
        config,
        "Qwen3ForCausalLM",
        head_dim=config.get("head_dim") or 128,
        has_qk_norms=True,
        has_qkv_bias=has_bias,
        has_output_bias=has_bias,
    )


def gemma(config: Config) -> DecoderSpec:
    """Gemma 1"""
    return _gemma(config, "GemmaForCausalLM", activation=config.get("hidden_activation") or _gelu(config))


def gemma2(config: Config) -> DecoderSpec:
    """Gemma 2; soft caps, every other layer with a window, norms before and after"""
    alternating = [_FULL if i % 2 else _SLIDING for i in range(config["num_hidden_layers"])]
    return _gemma(
        config,
        "Gemma2ForCausalLM",
        windows=layer_windows(config, alternating, config.get("sliding_window", 4096)),
        attention_scale=config.get("query_pre_attn_scalar", 256) ** -0.5,
        attention_soft_cap=config.get("attn_logit_softcapping", 50.0),
        logits_soft_cap=config.get("final_logit_softcapping", 30.0),
        has_post_norms=True,
    )


def gemma3(config: Config) -> DecoderSpec:
    """Gemma 3 text (270M, 1B); local layers with a window and a RoPE of their own, norms on q and k"""
    num_layers = config["num_hidden_layers"]
    pattern = config.get("sliding_window_pattern") or 6
    layer_types = list(
        config.get("layer_types") or [_SLIDING if (i + 1) % pattern else _FULL for i in range(num_layers)]
    )
    _refuse(config, "attn_logit_softcapping", "Gemma3ForCausalLM")
    return _gemma(
        config,
        "Gemma3ForCausalLM",
        ropes=_gemma3_ropes(config),
        layer_ropes=tuple(int(one == _SLIDING) for one in layer_types),
        windows=layer_windows(config, layer_types, config.get("sliding_window", 4096)),
        attention_scale=config.get("query_pre_attn_scalar", 256) ** -0.5,
        logits_soft_cap=config.get("final_logit_softcapping"),
        has_qk_norms=True,
        has_post_norms=True,
    )


def _gemma3_ropes(config: Config) -> tuple[RopeSpec, RopeSpec]:
    """(of full layers, of sliding ones). Scaling given without a layer type is that of full layers."""
    parameters = dict(config.get("rope_parameters") or {})
    full = {**(parameters.get(_FULL) or {}), **(config.get("rope_scaling") or {})}
    sliding = dict(parameters.get(_SLIDING) or {})
    sliding.setdefault("rope_theta", config.get("rope_local_base_freq") or 10_000.0)
    return read_rope(config, full, theta=1_000_000.0), read_rope(config, sliding)


def gemma3_conditional(config: Config) -> DecoderSpec:
    """Gemma 3 with vision (4B, 12B, 27B): served text-only, the vision tower is not loaded"""
    if "num_hidden_layers" not in config and isinstance(config.get("text_config"), Mapping):
        config = {**config, **config["text_config"]}
    return replace(
        gemma3(config),
        architecture="Gemma3ForConditionalGeneration",
        weight_prefixes=(
            ("language_model.model.", "model."),
            ("language_model.lm_head.", "lm_head."),
            ("model.language_model.", "model."),
        ),
        ignored_weights=_VISION,
    )


def _gemma(config: Config, architecture: str, **differences: Any) -> DecoderSpec:
    _refuse(config, "use_bidirectional_attention", architecture)
    has_bias = bool(config.get("attention_bias", False))
    fields: dict[str, Any] = {
        "head_dim": config.get("head_dim") or 256,
        "activation": config.get("hidden_activation") or "gelu_pytorch_tanh",
        "embedding_scale": config["hidden_size"] ** 0.5,
        "norms_are_offset": True,
        "has_qkv_bias": has_bias,
        "has_output_bias": has_bias,
        "ties_embeddings": bool(config.get("tie_word_embeddings", True)),
    }
    return llama_like(config, architecture, **{**fields, **differences})


def _gelu(config: Config) -> str:
    """Gemma 1's configs have "gelu", for which transformers uses the tanh form."""
    given = config.get("hidden_act") or "gelu_pytorch_tanh"
    return "gelu_pytorch_tanh" if given == "gelu" else str(given)


def phi3(config: Config) -> DecoderSpec:
    """Phi-3, Phi-3.5, Phi-4 mini and Phi-4 (dense); fused projections, longrope"""
    window = config.get("sliding_window")
    config = {"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096, **config}
    scaling = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    rotary_factor = scaling.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    for key in ("rope_type", "type"):
        if scaling.get(key) in ("su", "yarn"):  # longrope's earlier names
            scaling[key] = "longrope"
    return llama_like(
        config,
        "Phi3ForCausalLM",
        ropes=(replace(read_rope(config, scaling), rotary_factor=float(rotary_factor)),),
        windows=(window,) * config["num_hidden_layers"] if window else (),
    )


FAMILIES = {
    "LlamaForCausalLM": llama,
    "MistralForCausalLM": mistral,
    "Qwen2ForCausalLM": qwen2,
    "Qwen3ForCausalLM": qwen3,
    "GemmaForCausalLM": gemma,
    "Gemma2ForCausalLM": gemma2,
    "Gemma3ForCausalLM": gemma3,
    "Gemma3ForConditionalGeneration": gemma3_conditional,
    "Phi3ForCausalLM": phi3,
}
"""Architectures by the name that config.json gives them."""

CLASS_OF_MODEL_TYPE = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
"""What transformers' AutoModelForCausalLM takes for a config's model_type."""
