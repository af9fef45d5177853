"""Finds a model's architecture and checks what it says. Knows nothing of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from plugserve.core.contracts.model import ACTIVATIONS, DecoderSpec
from plugserve.core.errors import ModelError, UserError
from plugserve.core.model_files.families import FAMILIES

Architectures = Mapping[str, Callable[[Mapping[str, Any]], DecoderSpec]]


def describe(config: Mapping[str, Any], architectures: Architectures = FAMILIES) -> DecoderSpec:
    """The DecoderSpec of a Hugging Face config. Raises ModelError naming what is unknown or missing."""
    names = config.get("architectures") or []
    for name in names:
        if name in architectures:
            try:
                spec = architectures[name](config)
            except KeyError as error:
                raise ModelError(f"the model's config has no {error.args[0]!r}, which {name} needs") from error
            except UserError:
                raise
            except Exception as error:  # what a plugin's function or a config's odd value makes of it
                raise ModelError(
                    f"{name}: the model's config can't be read: {type(error).__name__}: {error}"
                ) from error
            _check(spec)
            return spec
    what = ", ".join(names) or config.get("model_type") or "none named"
    raise ModelError(f"architecture {what} is not supported; supported are {', '.join(architectures)}")


def _check(spec: DecoderSpec) -> None:
    if spec.activation not in ACTIVATIONS:
        raise ModelError(f"activation {spec.activation!r} is not supported; supported are {', '.join(ACTIVATIONS)}")
    if spec.num_heads % spec.num_kv_heads:
        raise ModelError(f"{spec.num_heads} attention heads can't share {spec.num_kv_heads} key-value heads evenly")
    for rope in spec.ropes:
        if int(spec.head_dim * rope.rotary_factor) % 2:
            raise ModelError(f"RoPE over {rope.rotary_factor} of {spec.head_dim} dimensions rotates an odd number")
    for name, per_layer in (("windows", spec.windows), ("layer_ropes", spec.layer_ropes)):
        if per_layer and len(per_layer) != spec.num_layers:
            raise ModelError(f"{spec.architecture}: {name} describes {len(per_layer)} of {spec.num_layers} layers")
