"""Divides what several loaded models have in common: processor cores, and the memory of a GPU."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from plugserve.core.errors import ConfigError
from plugserve.core.memory.machine import usable_cores
from plugserve.core.settings.model_entries import ModelEntry
from plugserve.core.settings.settings import Settings
from plugserve.server.supervisor.model_finder import FoundModel
from plugserve.server.supervisor.model_size import shown_bytes, uses_gpu

log = logging.getLogger(__name__)

_NUM_ON_DEMAND: Final = 2  # of the models that load on demand, as many are expected on a GPU at a time


class ResourceShares:
    """The shares of one server's models. A model's own settings are never changed."""

    def __init__(self, settings: Settings, entries: Sequence[ModelEntry]) -> None:
        num_kept = self._num_kept = sum(map(_is_kept, entries))
        num_others = len(entries) - num_kept + settings.allow_model_download
        self.has_several = len(entries) + settings.allow_model_download > 1
        self._num_on_gpu = num_kept + min(num_others, _NUM_ON_DEMAND)
        self._has_on_demand = num_others > 0
        self._num_replicas = settings.data_parallel_size

    def divided(self, own: Settings, entry: ModelEntry) -> Settings:
        """own, a model's settings, with each of its engines' share of the processor cores: models that are kept divide
        them, and one on demand takes what one more of those would."""
        if uses_gpu(own) or own.threads is not None or self._num_sharing(_is_kept(entry)) < 2:
            return own
        return own.model_copy(update={"threads": self._threads(_is_kept(entry))})

    def _num_sharing(self, is_kept: bool) -> int:
        """Engines that divide the cores."""
        return (self._num_kept + (not is_kept)) * self._num_replicas

    def _threads(self, is_kept: bool) -> int:
        return max(1, usable_cores() // self._num_sharing(is_kept))

    def divides_gpu(self, own: Settings, entry: ModelEntry) -> bool:
        """The model gets a share of a GPU's memory."""
        is_given = own.kv_cache_memory is not None or own.num_gpu_blocks_override is not None
        is_alone = self._num_on_gpu < 2 or "gpu_memory_utilization" in entry.overrides
        return uses_gpu(own) and not is_given and not is_alone

    def with_kv(self, own: Settings, entry: ModelEntry, found: FoundModel) -> Settings:
        """own with the KV cache that the model's share of a GPU leaves. Raises ConfigError where it leaves none."""
        if not self.divides_gpu(own, entry) or not found.device_bytes:
            return own
        share_bytes = int(found.device_bytes * own.gpu_memory_utilization / self._num_on_gpu)
        fixed_bytes = found.size_with(0)
        kv_bytes = share_bytes - fixed_bytes
        if kv_bytes <= 0:
            raise ConfigError(
                f"{entry.name} takes {shown_bytes(fixed_bytes)} without a KV cache, more than its share of the GPU, "
                f"{shown_bytes(share_bytes)} ({self._num_on_gpu} models share it); give it kv_cache_memory, or serve "
                "fewer models"
            )
        return own.model_copy(update={"kv_cache_memory": kv_bytes})

    def announce(self, settings: Settings) -> None:
        """Log how models share the device, if they do."""
        if uses_gpu(settings) and self._num_on_gpu > 1 and settings.kv_cache_memory is None:
            log.info(
                "%d models share the GPU: each takes %.2f of its memory (--gpu-memory-utilization %g divided by %d); "
                "set gpu_memory_utilization or kv_cache_memory of a model for another share",
                self._num_on_gpu, settings.gpu_memory_utilization / self._num_on_gpu, settings.gpu_memory_utilization,
                self._num_on_gpu,
            )  # fmt: skip
        elif not uses_gpu(settings) and self._num_kept + self._has_on_demand > 1 and settings.threads is None:
            log.info(
                "models share %d cores: threads of an engine: %d of a model that is kept, %d of one on demand; set "
                "threads of a model for another share",
                usable_cores(), self._threads(is_kept=True), self._threads(is_kept=False),
            )  # fmt: skip


def _is_kept(entry: ModelEntry) -> bool:
    return entry.is_pinned or entry.is_preloaded
