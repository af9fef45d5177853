"""The torch backend as a plugin: its runner, the architectures and the weight formats. Torch-free until it is used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from plugserve.backends.torch.weights.formats import (
    DistributedFormat,
    DummyFormat,
    GgufFormat,
    SafetensorsFormat,
    ShardedStateFormat,
    TorchFormat,
)
from plugserve.core.contracts.factories import ArchitectureFunction, RunnerContext, RunnerFactory, WeightFormatFactory
from plugserve.core.contracts.weights import ModelSource, WeightSource
from plugserve.core.model_files.families import FAMILIES
from plugserve.core.plugin_system.hookspecs import hookimpl

if TYPE_CHECKING:
    import torch

    from plugserve.backends.torch.encoders.encoder_runner import TorchEncoderRunner
    from plugserve.backends.torch.runner.model_sources import DraftFiles
    from plugserve.backends.torch.runner.torch_runner import TorchRunner


def make_torch_runner(context: RunnerContext) -> TorchRunner | TorchEncoderRunner:
    """The runner of the model's kind: a decoder's, or an encoder's."""
    from plugserve.core.model_files.encoder_files import is_encoder
    from plugserve.core.model_files.model_source import read_config

    if is_encoder(read_config(context.source)):
        return _make_encoder_runner(context)
    return _make_decoder_runner(context)


def _make_encoder_runner(context: RunnerContext) -> TorchEncoderRunner:
    from plugserve.backends.torch.encoders.encoder_model import encoder_shapes
    from plugserve.backends.torch.encoders.encoder_runner import EncoderSettings, TorchEncoderRunner
    from plugserve.backends.torch.weights.formats import open_weights
    from plugserve.core.model_files.encoder_files import encoder_facts
    from plugserve.core.model_files.model_source import read_config

    settings, folder = context.config, context.source.path
    config = read_config(context.source)
    facts = encoder_facts(folder, config)
    weights = WeightSource(folder, config, lambda: encoder_shapes(folder, facts.task, context.source.config_overrides))
    return TorchEncoderRunner(
        folder,
        config,
        facts,
        EncoderSettings(
            dtype=settings.dtype,
            device=settings.device,
            num_threads=settings.threads,
            max_model_len=settings.max_model_len,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            config_overrides=context.source.config_overrides,
        ),
        open_weights=lambda: open_weights(weights, settings.load_format, context.weight_formats),
        open_dense=lambda name: open_weights(
            WeightSource(folder / name, {}, lambda: {}, show_progress=False), "auto", context.weight_formats
        ),
    )


def _make_decoder_runner(context: RunnerContext) -> TorchRunner:
    from plugserve.backends.torch.runner.load_choices import RunnerSettings
    from plugserve.backends.torch.runner.memory_plan import GIB, MemoryRequest
    from plugserve.backends.torch.runner.model_sources import ModelSources
    from plugserve.backends.torch.runner.torch_runner import TorchRunner
    from plugserve.core.model_files.model_source import context_length, read_config
    from plugserve.core.model_files.stored_weights import NO_WEIGHTS, stored_weights

    settings = context.config
    config = read_config(context.source)
    return TorchRunner(
        ModelSources(
            config,
            open_weights=lambda: _open_weights(context.source, config, context),
            choose_attention=context.choose_attention,
            architectures=context.architectures,
            make_proposer=context.make_proposer,
            open_draft=lambda reference: _open_draft(reference, context),
            make_lora_manager=context.make_lora_manager,
            stored=lambda: NO_WEIGHTS if settings.load_format == "dummy" else stored_weights(context.source),
        ),
        RunnerSettings(
            dtype=settings.dtype,
            device=settings.device,
            num_threads=settings.threads,
            max_model_len=settings.max_model_len,
            model_max_len=context_length(config),
            block_size=settings.block_size,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            enforce_eager=settings.enforce_eager,
            memory=MemoryRequest(
                kv_cache_bytes=settings.kv_cache_memory,
                num_blocks=settings.num_gpu_blocks_override,
                gpu_memory_utilization=settings.gpu_memory_utilization,
                host_bytes=None if settings.swap_space is None else int(settings.swap_space * GIB),
                offload_bytes=int(settings.cpu_offload_gb * GIB),
            ),
            max_num_drafts=settings.num_speculative_tokens,
            max_loras=settings.max_loras,
            max_lora_rank=settings.max_lora_rank,
            draft_model=settings.speculative_model,
        ),
        context.placement,
    )


def _open_draft(reference: str, context: RunnerContext) -> DraftFiles:
    from plugserve.backends.torch.runner.model_sources import DraftFiles
    from plugserve.core.model_files.draft_source import find_draft
    from plugserve.core.model_files.model_source import read_config

    source = find_draft(reference, download_dir=context.config.download_dir, load_format=context.config.load_format)
    config = read_config(source)
    quiet = replace(context, note_progress=lambda share: None)  # the served model has been read by then
    return DraftFiles(config, lambda: _open_weights(source, config, quiet))


def _open_weights(
    source: ModelSource, config: Mapping[str, Any], context: RunnerContext
) -> Iterable[tuple[str, torch.Tensor]]:
    from plugserve.backends.torch.models.make_model import parameter_shapes
    from plugserve.backends.torch.weights.counted import counted
    from plugserve.backends.torch.weights.formats import open_weights

    weights = WeightSource(source.path, config, lambda: parameter_shapes(config, context.architectures))
    tensors = open_weights(weights, context.config.load_format, context.weight_formats)
    return counted(tensors, weights.shapes, context.note_progress)


@hookimpl
def plugserve_model_runners() -> Mapping[str, RunnerFactory]:
    return {"torch": make_torch_runner}


@hookimpl
def plugserve_architectures() -> Mapping[str, ArchitectureFunction]:
    return FAMILIES


@hookimpl
def plugserve_weight_formats() -> Mapping[str, WeightFormatFactory]:
    return {
        "safetensors": lambda context: SafetensorsFormat(),
        "sharded_state": lambda context: ShardedStateFormat(),
        "gguf": lambda context: GgufFormat(),
        "pt": lambda context: TorchFormat(),
        "dtensor": lambda context: DistributedFormat(),
        "dummy": lambda context: DummyFormat(context.config.seed or 0),
    }
