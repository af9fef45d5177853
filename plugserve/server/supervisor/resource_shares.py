"""Divides what several loaded models have in common: processor cores, and the memory of a GPU."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

from plugserve.core.machine import usable_cores
from plugserve.core.settings.model_entries import ModelEntry
from plugserve.core.settings.settings import Settings
from plugserve.server.supervisor.model_size import uses_gpu

log = logging.getLogger(__name__)

_NUM_ON_DEMAND: Final = 2  # of the models that load on demand, as many are expected on a GPU at a time


class ResourceShares:
    """The shares of one server's models. A model's own settings are never changed."""

    def __init__(self, settings: Settings, entries: Sequence[ModelEntry]) -> None:
        num_kept = sum(entry.is_pinned or entry.is_preloaded for entry in entries)
        num_others = len(entries) - num_kept + settings.allow_model_download
        self.has_several = len(entries) + settings.allow_model_download > 1
        self._num_on_gpu = num_kept + min(num_others, _NUM_ON_DEMAND)
        self._num_on_cpu = num_kept + min(num_others, 1)

    def divided(self, own: Settings, entry: ModelEntry) -> Settings:
        """own, the model's settings, with its share of what all have in common."""
        changes: dict[str, Any] = {}
        if not uses_gpu(own):
            if own.threads is None and self._num_on_cpu > 1:
                changes["threads"] = max(1, usable_cores() // self._num_on_cpu)
        elif self._takes_share(own, entry):
            changes["gpu_memory_utilization"] = own.gpu_memory_utilization / self._num_on_gpu
        return own.model_copy(update=changes)

    def _takes_share(self, own: Settings, entry: ModelEntry) -> bool:
        is_given = own.kv_cache_memory is not None or own.num_gpu_blocks_override is not None
        return self._num_on_gpu > 1 and not is_given and "gpu_memory_utilization" not in entry.overrides

    def announce(self, settings: Settings) -> None:
        """Log how models share the device, if they do."""
        if uses_gpu(settings) and self._num_on_gpu > 1 and settings.kv_cache_memory is None:
            log.info(
                "%d models share the GPU: each takes %.2f of its memory (--gpu-memory-utilization %g divided by %d); "
                "set gpu_memory_utilization or kv_cache_memory of a model for another share",
                self._num_on_gpu, settings.gpu_memory_utilization / self._num_on_gpu, settings.gpu_memory_utilization,
                self._num_on_gpu,
            )  # fmt: skip
        elif not uses_gpu(settings) and self._num_on_cpu > 1 and settings.threads is None:
            log.info(
                "%d models share %d cores: each engine runs %d threads; set threads of a model for another share",
                self._num_on_cpu, usable_cores(), max(1, usable_cores() // self._num_on_cpu),
            )  # fmt: skip
