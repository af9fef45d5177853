"""The native CPU backend as a plugin: a runner for the decoder family, in C++ from installation. Torch-free."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from plugserve.backends.cpu.rope_tables import KINDS
from plugserve.core.contracts.factories import RunnerContext, RunnerFactory
from plugserve.core.contracts.model import DecoderSpec
from plugserve.core.errors import ConfigError, NotCoveredError
from plugserve.core.plugin_system.hookspecs import hookimpl

if TYPE_CHECKING:
    from plugserve.backends.cpu.model_weights import ModelWeights
    from plugserve.backends.cpu.native_runner import NativeRunner
    from plugserve.core.contracts.weights import ModelSource

_MOST_HEAD_DIM = 256
_TILE = 16
_GPUS = ("nvidia[0-9]*", "kfd", "dxg")  # NVIDIA's, AMD's, and those of Windows' Linux


class NativeOptions(BaseModel):
    """Options of the native CPU backend."""

    model_config = ConfigDict(extra="forbid")

    quantization: Literal["none", "int8", "int4"] = Field(
        default="none",
        description="How matrices that come as floats are kept: none (bfloat16), int8 or int4 (groups of 32 inputs). "
        "Quantised GGUF files keep their own codes with none.",
    )
    instructions: Literal["auto", "amx", "avx512", "avx2", "none"] = Field(
        default="auto", description="The instruction set; auto is the best that the CPU has, none plain C++."
    )


def make_native_runner(context: RunnerContext) -> NativeRunner:
    """Raises ConfigError for what the backend doesn't cover, in one line."""
    from plugserve.backends.cpu.library import find_library
    from plugserve.backends.cpu.native_forward import NativeForward
    from plugserve.backends.cpu.native_runner import NativeRunner
    from plugserve.backends.cpu.native_settings import NativeSettings
    from plugserve.core.model_files.architectures import describe
    from plugserve.core.model_files.encoder_files import is_encoder
    from plugserve.core.model_files.model_source import context_length, read_config
    from plugserve.core.model_files.stored_weights import NO_WEIGHTS, stored_weights

    config, settings = read_config(context.source), context.config
    library = find_library()
    if isinstance(library, str):
        raise NotCoveredError(f"the native CPU backend can't be used: {library}; or use --runner torch")
    refusal = _refusal_of_settings(context) or ("encoders run with torch" if is_encoder(config) else None)
    described = None if refusal else describe(config, context.architectures)
    if isinstance(described, DecoderSpec):
        refusal = _refusal_of_model(described)
    elif not refusal:
        refusal = "its plugin describes the model in torch code"
    if refusal:
        raise NotCoveredError(f"the native CPU backend doesn't cover this: {refusal}; use --runner torch")
    assert isinstance(described, DecoderSpec)
    options = context.options or NativeOptions()
    forward = NativeForward(
        library,
        described,
        NativeSettings(
            threads=settings.threads,
            max_model_len=settings.max_model_len,
            model_max_len=context_length(config),
            block_size=settings.block_size,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            kv_cache_memory=settings.kv_cache_memory,
            num_blocks=settings.num_gpu_blocks_override,
            swap_space=settings.swap_space,
            level=_level(options.instructions, library),
        ),
        lambda: _read(described, config, context, options),
    )
    stored = NO_WEIGHTS if settings.load_format == "dummy" else stored_weights(context.source)
    return NativeRunner(forward, settings.max_num_seqs, stored, options.quantization)


def _refusal_of_settings(context: RunnerContext) -> str | None:
    settings = context.config
    if settings.device not in ("auto", "cpu"):
        return f"--device {settings.device}"
    if settings.device == "auto" and any(True for name in _GPUS for _ in Path("/dev").glob(name)):
        return "a GPU is here (--device cpu leaves it alone)"
    if context.placement.num_ranks > 1:
        return "a model that several ranks share"
    if settings.dtype not in ("auto", "bfloat16"):
        return f"--dtype {settings.dtype} (its cache and activations are bfloat16, codes of 8 or 4 bits)"
    if context.make_proposer is not None:
        return "speculation"
    if context.make_lora_manager is not None:
        return "LoRA adapters (--enable-lora)"
    return None


def _refusal_of_model(spec: DecoderSpec) -> str | None:
    kinds = {rope.kind for rope in spec.ropes}.difference(KINDS)
    if kinds:
        return f"RoPE of kind {sorted(kinds)[0]}"
    if spec.head_dim % _TILE or spec.head_dim > _MOST_HEAD_DIM:
        return f"heads of {spec.head_dim} dimensions (multiples of {_TILE} up to {_MOST_HEAD_DIM} are covered)"
    return None


def _level(name: str, library: ctypes.CDLL) -> int:
    """Of cpu_features.h; -1 for the best. Raises ConfigError for one that the CPU lacks."""
    if name == "auto":
        return -1
    if name == "none":
        return 0
    levels: list[str] = library.ps_levels().decode().split()
    if name not in levels:
        raise ConfigError(
            f"--native-cpu.instructions {name}: this CPU has {', '.join(levels) or 'none of them'}; use auto"
        )
    return len(levels) - levels.index(name)


def _read(spec: DecoderSpec, config: Mapping[str, Any], context: RunnerContext, options: NativeOptions) -> ModelWeights:
    from plugserve.backends.cpu.model_weights import collect, pack_tensors, read_gguf_weights

    source, load_format = context.source, context.config.load_format
    if source.kind == "gguf" and load_format in ("auto", "gguf"):
        heads = (spec.num_heads, spec.num_kv_heads)
        return collect(read_gguf_weights(source.path, spec, heads, options.quantization), spec)
    return collect(pack_tensors(_tensors(source, config, context), options.quantization), spec)


def _tensors(source: ModelSource, config: Mapping[str, Any], context: RunnerContext) -> Any:
    """Through the weight formats, which read with torch."""
    from plugserve.backends.cpu.model_weights import parameter_shapes
    from plugserve.backends.torch.weights.counted import counted
    from plugserve.backends.torch.weights.formats import open_weights
    from plugserve.core.contracts.weights import WeightSource
    from plugserve.core.model_files.architectures import describe

    def shapes() -> Mapping[str, tuple[int, ...]]:
        described = describe(config, context.architectures)
        assert isinstance(described, DecoderSpec)
        return parameter_shapes(described)

    weights = WeightSource(source.path, config, shapes)
    tensors = open_weights(weights, context.config.load_format, context.weight_formats)
    return counted(tensors, weights.shapes, context.note_progress)


@hookimpl
def plugserve_model_runners() -> Mapping[str, RunnerFactory]:
    return {"native-cpu": make_native_runner}


@hookimpl
def plugserve_options() -> type[BaseModel]:
    return NativeOptions
