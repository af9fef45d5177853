"""Computes how many KV blocks fit into device and host memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from plugserve.core.errors import ConfigError
from plugserve.core.memory.machine import available_memory_bytes

log = logging.getLogger(__name__)

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class MemoryRequest:
    """The user's settings; None means automatic. host_bytes are for KV blocks in host memory, offload_bytes for
    weights there."""

    kv_cache_bytes: int | None
    num_blocks: int | None
    gpu_memory_utilization: float
    host_bytes: int | None = 0
    offload_bytes: int = 0


def plan_blocks(request: MemoryRequest, bytes_per_block: int, default_bytes: Callable[[], int]) -> int:
    """Number of KV blocks; default_bytes is what they may take where the user set nothing. Raises ConfigError when not
    even one fits."""
    if request.num_blocks is not None:
        return request.num_blocks
    size_bytes = default_bytes() if request.kv_cache_bytes is None else request.kv_cache_bytes
    num_blocks = size_bytes // bytes_per_block
    if num_blocks < 1:
        raise ConfigError(
            f"no room for KV blocks: {size_bytes / GIB:.2f} GiB are available and one block takes "
            f"{bytes_per_block / GIB:.3f} GiB; free memory or set --kv-cache-memory"
        )
    return num_blocks


def plan_host_slots(request: MemoryRequest, bytes_per_block: int, default_bytes: Callable[[int], int]) -> int:
    """The number of blocks in host memory. default_bytes gives their size from the available memory if the user set
    none."""
    size_bytes = host_tier_bytes(request, default_bytes)
    if request.host_bytes is not None and size_bytes < request.host_bytes:
        log.warning(
            "--swap-space lowered from=%g to=%.1f GiB: that is half of the memory that is left",
            request.host_bytes / GIB, size_bytes / GIB,
        )  # fmt: skip
    return size_bytes // bytes_per_block


def host_tier_bytes(request: MemoryRequest, default_bytes: Callable[[int], int]) -> int:
    """Host memory for KV blocks: at most half of what is available where more is asked for than that."""
    available = available_memory_bytes()
    if request.host_bytes is None:
        return default_bytes(available)
    return request.host_bytes if request.host_bytes <= available else available // 2
