"""The torch runner as a plugin: reads the settings and the model, and hands them to core's TorchRunner.

The one built-in plugin that reaches into core's runner: everything else in plugins/ stands on the contracts alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from plugserve.core.contracts import AttentionBackend, AttentionSpec, PluginContext, RunnerFactory, WeightSource
from plugserve.core.hookspecs import hookimpl

if TYPE_CHECKING:
    import torch

    from plugserve.core.model_source import ModelSource
    from plugserve.core.runner.draft_model import DraftFiles
    from plugserve.core.runner.torch_runner import TorchRunner


def make_torch_runner(
    context: PluginContext, source: ModelSource, choose_attention: Callable[[AttentionSpec], AttentionBackend]
) -> TorchRunner:
    from plugserve.core.model_source import context_length, read_config
    from plugserve.core.runner.load_choices import RunnerSettings
    from plugserve.core.runner.memory_plan import GIB, MemoryRequest
    from plugserve.core.runner.torch_runner import TorchRunner

    settings = context.config
    config = read_config(source)
    return TorchRunner(
        config,
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
            ),
            max_num_drafts=settings.num_speculative_tokens,
            max_loras=settings.max_loras,
            max_lora_rank=settings.max_lora_rank,
        ),
        open_weights=lambda: _open_weights(source, config, context),
        choose_attention=choose_attention,
        architectures=context.architectures,
        make_proposer=context.make_proposer,
        open_draft=lambda reference: _open_draft(reference, context),
        make_lora_manager=context.make_lora_manager,
    )


def _open_draft(reference: str, context: PluginContext) -> DraftFiles:
    from plugserve.core.draft_source import find_draft
    from plugserve.core.model_source import read_config
    from plugserve.core.runner.draft_model import DraftFiles

    source = find_draft(reference, context.config)
    config = read_config(source)
    return DraftFiles(config, lambda: _open_weights(source, config, context))


def _open_weights(
    source: ModelSource, config: Mapping[str, Any], context: PluginContext
) -> Iterable[tuple[str, torch.Tensor]]:
    from plugserve.core.models.decoder import parameter_shapes
    from plugserve.core.models.registry import describe
    from plugserve.core.weights.formats import open_weights

    weights = WeightSource(source.path, config, lambda: parameter_shapes(describe(config, context.architectures)))
    return open_weights(weights, context.config.load_format, context.weight_formats)


@hookimpl
def plugserve_model_runners() -> Mapping[str, RunnerFactory]:
    return {"torch": make_torch_runner}
