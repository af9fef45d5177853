"""Chooses the KV manager that does what is wanted and no more."""

from __future__ import annotations

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.contracts.prefix_cache import PrefixCache
from plugserve.core.contracts.runner import RunnerInfo
from plugserve.core.engine.kv.caching_kv_manager import CachingKVManager
from plugserve.core.engine.kv.host_slots import HostSlots
from plugserve.core.engine.kv.kv_manager import KVManager
from plugserve.core.engine.kv.swapping_kv_manager import SwappingKVManager


def make_kv_manager(
    info: RunnerInfo, stats: EngineStats, prefix_cache: PrefixCache | None, cache_salt: str
) -> KVManager:
    """The manager of a runner's blocks, with a prefix cache and host memory where there are any."""
    if prefix_cache is not None:
        return CachingKVManager(info, stats, prefix_cache, cache_salt)
    if info.num_host_slots:
        return SwappingKVManager(info, stats, HostSlots(info.num_host_slots))
    return KVManager(info, stats)
