"""The log lines of a server's start: settings, models, memory, address."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from plugserve import __version__
from plugserve.core.contracts.engine_facts import EngineInfo
from plugserve.core.model_files.model_source import ModelSource
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.model_entries import ModelEntry
from plugserve.core.settings.settings import Settings

log = logging.getLogger("plugserve")

_GIB = 1 << 30
_MAX_NAMES = 20


def announce_settings(settings: Settings, host: PluginHost, sources: Sequence[ModelSource]) -> None:
    """Version, models, settings that differ from their defaults, and what fills each slot."""
    log.info("plugserve %s", __version__)
    for source in sources:
        log.info("model %s from %s", source.name, source.path)
    changed = settings.changed()
    listed = " ".join(f"{name}={value}" for name, value in changed.items()) or "none, all defaults"
    log.info("settings that differ from the defaults: %s", listed)
    for slot, fill in host.slots(settings).items():
        log.info("slot %s: %s", slot.replace("_", " "), fill)


def announce_table(entries: Sequence[ModelEntry], budget_bytes: int, *, is_given: bool) -> None:
    """Log which models load on demand, and the memory that all may take."""
    names = [entry.name for entry in entries if not entry.is_preloaded]
    shown = ", ".join(names[:_MAX_NAMES]) + (f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else "")
    log.info("models that load on the first request that names them: %s", shown or "none")
    source = "--model-memory-budget" if is_given else "what is free now; --model-memory-budget sets another"
    log.info("memory for models: %.2f GiB (%s)", budget_bytes / _GIB, source)


def announce_engine(model: str, info: EngineInfo) -> None:
    """Log the loaded model, and how many requests fit into its KV cache."""
    if info.task != "generate":
        log.info(
            "encoder %s (%s): weights %.2f GiB as %s on %s, loaded in %.2f s, inputs of up to %d tokens",
            model,
            "embeddings" if info.task == "embed" else "scores of pairs",
            info.weight_bytes / _GIB,
            info.dtype,
            info.device,
            info.load_seconds,
            info.max_model_len,
        )
        return
    num_tokens = info.num_blocks * info.block_size
    log.info(
        "engine of %s: weights %.2f GiB as %s on %s, loaded in %.2f s, attention %s",
        model,
        info.weight_bytes / _GIB,
        info.dtype,
        info.device,
        info.load_seconds,
        info.slots.get("attention", "of the runner"),
    )
    log.info(
        "KV cache of %s: %d blocks of %d tokens, %.2f GiB; %.2f requests of full length (%d tokens) fit",
        model,
        info.num_blocks,
        info.block_size,
        info.kv_cache_bytes / _GIB,
        num_tokens / info.max_model_len,
        info.max_model_len,
    )

    if info.max_num_drafts:
        log.info(
            "speculation of %s: %s, up to %d drafts a step; draft weights %.2f GiB, draft KV %.2f GiB of the above",
            model,
            info.slots.get("draft proposer", ""),
            info.max_num_drafts,
            info.draft_weight_bytes / _GIB,
            info.draft_kv_bytes / _GIB,
        )
