"""The memory and the processor cores that processes of this machine, or of this container, may use."""

from __future__ import annotations

import os
from pathlib import Path


def available_memory_bytes() -> int:
    """Bytes that this process can still allocate: the smaller of the cgroup's limit minus its use, and the machine's
    free memory."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        if Path(limit).exists() and Path(used).exists() and (text := Path(limit).read_text().strip()).isdigit():
            limits.append(max(0, int(text) - int(Path(used).read_text())))
    return min(limits)


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the cgroup's quota (a container's --cpus) rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(cores, -int(-quota // 1))) if quota else cores


def _cgroup_quota() -> float | None:
    """Cores' worth of time a period, or None without a limit (cgroup v2, then v1)."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text().strip()
            period = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return int(quota) / int(period) if quota.isdigit() and int(quota) > 0 else None
