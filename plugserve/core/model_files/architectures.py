"""Finds a model's architecture, calls it for the model's description, and checks the result. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from plugserve.core.contracts.factories import ArchitectureFunction
from plugserve.core.contracts.model import ACTIVATIONS, DecoderSpec, ModelDefinition
from plugserve.core.errors import ModelError, UserError
from plugserve.core.model_files.families import CLASS_OF_MODEL_TYPE, FAMILIES

Architectures = Mapping[str, ArchitectureFunction]


def describe_decoder(config: Mapping[str, Any], architectures: Architectures, runner: str) -> DecoderSpec:
    """As describe, for a runner that can't run torch code: declines a ModelDefinition with ModelError."""
    described = describe(config, architectures)
    if isinstance(described, DecoderSpec):
        return described
    raise ModelError(
        f"{described.architecture} is torch code of its own (a ModelDefinition), which --runner {runner} can't run; "
        "use --runner torch"
    )


def describe(config: Mapping[str, Any], architectures: Architectures = FAMILIES) -> DecoderSpec | ModelDefinition:
    """The description of the model of a Hugging Face config, made by its architecture. Raises ModelError naming what is
    unknown or missing."""
    names = architecture_names(config, architectures)
    name = next((name for name in names if name in architectures), None)
    if name is None:
        raise _unsupported(names, config, architectures)
    try:
        described = architectures[name](config)
    except KeyError as error:
        raise ModelError(f"the model's config has no {error.args[0]!r}, which {name} needs") from error
    except UserError:
        raise
    except Exception as error:  # from a plugin's function or an invalid config value
        raise ModelError(f"{name}: the model's config can't be read: {type(error).__name__}: {error}") from error
    if isinstance(described, DecoderSpec):
        _check(described)
    elif not isinstance(described, ModelDefinition):
        raise ModelError(
            f"{name}: its architecture function returned {type(described).__name__}, not a DecoderSpec or a "
            "ModelDefinition"
        )
    return described


def architecture_names(config: Mapping[str, Any], architectures: Architectures = FAMILIES) -> list[str]:
    """The config's architectures. One without any is taken by its model_type, as transformers' AutoModelForCausalLM
    does; for a plugin's architecture XForCausalLM the model_type is x, without regard to case and underscores."""
    named = config.get("architectures")
    if named:
        return list(named)
    model_type = str(config.get("model_type") or "")
    known = CLASS_OF_MODEL_TYPE.get(model_type)
    if known is not None:
        return [known]
    plain = model_type.replace("_", "").replace("-", "").lower()
    return [name for name in architectures if name == f"{name[:-11]}ForCausalLM" and name[:-11].lower() == plain]


def _unsupported(names: list[str], config: Mapping[str, Any], architectures: Architectures) -> ModelError:
    model_type = config.get("model_type")
    what = ", ".join(names) or (f"of model_type {model_type!r}" if model_type else "")
    if not what:
        return ModelError("the model's config.json has neither architectures nor model_type: add one of them")
    return ModelError(
        f"architecture {what} is not supported; supported are {', '.join(architectures)}. "
        f"A plugin can add it with the hook plugserve_architectures: docs/plugins/hooks/plugserve_architectures.md"
    )


def _check(spec: DecoderSpec) -> None:
    _check_numbers(spec)
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


def _check_numbers(spec: DecoderSpec) -> None:
    """Check that sizes are numbers in a valid range, before memory is allocated by them."""
    sizes = ("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim", "vocab_size")
    for name in sizes:
        value = getattr(spec, name)
        if type(value) is not int or not 1 <= value < 1 << 31:
            raise ModelError(
                f"{spec.architecture}: {name} should be a whole number from 1 to 2147483647, got {value!r}"
            )
    for name in ("norm_eps", "attention_scale", "attention_soft_cap", "logits_soft_cap", "embedding_scale"):
        value = getattr(spec, name)
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
            raise ModelError(f"{spec.architecture}: {name} should be a number, got {value!r}")
    for window in spec.windows:
        if window is not None and (type(window) is not int or window < 1):
            raise ModelError(f"{spec.architecture}: a sliding window should be a whole number above 0, got {window!r}")
