"""Which architectures are known, and how each one's Hugging Face config becomes a DecoderSpec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from plugserve.core.errors import ModelError
from plugserve.core.models.decoder_spec import DecoderSpec, RopeSpec

ROPE_KINDS = ("default", "linear", "llama3")


def read_rope(config: Mapping[str, Any]) -> RopeSpec:
    """RopeSpec from either form: rope_parameters (transformers 5), or rope_theta with rope_scaling."""
    scaling = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(scaling.pop("rope_theta", None) or config.get("rope_theta") or 10000.0)
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    if kind not in ROPE_KINDS:
        raise ModelError(f"RoPE scaling {kind!r} is not supported; supported are {', '.join(ROPE_KINDS)}")
    return RopeSpec(theta=theta, kind=kind, scaling=scaling)


def llama(config: Mapping[str, Any]) -> DecoderSpec:
    """LlamaForCausalLM: Llama 2 and 3, SmolLM, and everything saved under that architecture."""
    num_heads = config["num_attention_heads"]
    attention_bias = bool(config.get("attention_bias", False))
    return DecoderSpec(
        architecture="LlamaForCausalLM",
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // num_heads,
        vocab_size=config["vocab_size"],
        norm_eps=config.get("rms_norm_eps", 1e-6),
        rope=read_rope(config),
        activation=config.get("hidden_act", "silu"),
        has_qkv_bias=attention_bias,
        has_output_bias=attention_bias,
        has_mlp_bias=bool(config.get("mlp_bias", False)),
        ties_embeddings=bool(config.get("tie_word_embeddings", False)),
    )


ARCHITECTURES: Mapping[str, Callable[[Mapping[str, Any]], DecoderSpec]] = {"LlamaForCausalLM": llama}


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """The DecoderSpec of a Hugging Face config. Raises ModelError naming what is unknown or missing."""
    names = config.get("architectures") or []
    for name in names:
        if name in ARCHITECTURES:
            try:
                spec = ARCHITECTURES[name](config)
            except KeyError as error:
                raise ModelError(f"the model's config has no {error.args[0]!r}, which {name} needs") from error
            if spec.activation != "silu":
                raise ModelError(f"activation {spec.activation!r} is not supported; supported is silu")
            return spec
    what = ", ".join(names) or config.get("model_type") or "none named"
    raise ModelError(f"architecture {what} is not supported; supported are {', '.join(ARCHITECTURES)}")
