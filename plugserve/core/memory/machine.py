"""The memory and the processor cores that processes of this machine, or of this container, may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class HostMemory:
    """The memory of the machine, or of the smallest cgroup around this process that has a limit. available_bytes can
    still be allocated; pages of files that the system keeps count as available. limit names what bounds it."""

    total_bytes: int
    available_bytes: int
    limit: str


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """This process's resident memory, now and at most since its start; 0 where /proc doesn't tell."""

    resident_bytes: int
    peak_bytes: int


def host_memory() -> HostMemory:
    """The machine's memory within the limits of cgroups, of version 1 and 2."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = _status_bytes(_PROC / "meminfo").get("MemAvailable", machine)
    smallest = HostMemory(machine, min(machine, available), "machine")
    for limit, used in _cgroup_limits():
        if limit < smallest.total_bytes:
            smallest = HostMemory(limit, smallest.available_bytes, "container (cgroup)")
        if limit - used < smallest.available_bytes:
            smallest = HostMemory(smallest.total_bytes, max(0, limit - used), smallest.limit)
    return smallest


def available_memory_bytes() -> int:
    """Bytes that this process can still allocate."""
    return host_memory().available_bytes


def process_memory() -> ProcessMemory:
    """The resident memory of this process."""
    status = _status_bytes(_PROC / "self" / "status")
    return ProcessMemory(status.get("VmRSS", 0), status.get("VmHWM", 0))


def num_oom_kills() -> int:
    """How many processes the system has killed because memory ran out: on this machine, or in a cgroup around this
    process, whichever counts more."""
    files = [(_PROC / "vmstat")]
    for folder, limit_file, _ in _memory_cgroups():
        files.append(folder / ("memory.events" if limit_file == "memory.max" else "memory.oom_control"))
    return max(map(_counted_oom_kills, files))


def _counted_oom_kills(path: Path) -> int:
    try:
        fields = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return 0
    return next((int(words[1]) for words in fields if words[:1] == ["oom_kill"] and len(words) == 2), 0)


def _status_bytes(path: Path) -> dict[str, int]:
    """The sizes in a file of "Name: 123 kB" lines; {} where there is no such file."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    fields = [line.split() for line in lines]
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in fields if len(words) == 3 and words[2] == "kB"}


def _cgroup_limits() -> Iterator[tuple[int, int]]:
    """(limit, use without cached pages of files) of each cgroup around this process that limits memory."""
    for folder, limit_file, used_file in _memory_cgroups():
        limit, used = _number(folder / limit_file), _number(folder / used_file)
        if limit is not None and used is not None:
            yield limit, max(0, used - _cached_bytes(folder))


def _memory_cgroups() -> Iterator[tuple[Path, str, str]]:
    """The folder of each memory cgroup around this process, inner ones first, and its files of limit and use. In a
    container the own path may be the host's, of which only the root is there."""
    try:
        lines = (_PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    paths = {controllers: Path(path) for _, controllers, path in (line.split(":", 2) for line in lines if ":" in line)}
    one = next((path for names, path in paths.items() if "memory" in names.split(",")), Path("/"))
    for root, path, names in (
        (_CGROUPS, paths.get("", Path("/")), ("memory.max", "memory.current")),
        (_CGROUPS / "memory", one, ("memory.limit_in_bytes", "memory.usage_in_bytes")),
    ):
        for inner in (path, *path.parents):
            folder = root / str(inner).lstrip("/")
            if (folder / names[0]).is_file():
                yield folder, *names


def _cached_bytes(folder: Path) -> int:
    """Pages of files, which the system gives back when memory is wanted. memory.stat of version 1 counts a cgroup
    alone in the plain names, with those inside it in total_*."""
    try:
        fields = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
    except OSError:
        return 0
    sizes = {words[0]: int(words[1]) for words in fields if len(words) == 2}
    return sum(sizes.get(f"total_{name}", sizes.get(name, 0)) for name in ("inactive_file", "active_file"))


def _number(path: Path) -> int | None:
    """None for "max", and for a file that isn't there."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the cgroup's quota (a container's --cpus) rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(cores, -int(-quota // 1))) if quota else cores


def _cgroup_quota() -> float | None:
    """Cores' worth of time a period, or None without a limit (cgroup v2, then v1)."""
    try:
        quota, period = (_CGROUPS / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (_CGROUPS / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (_CGROUPS / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return int(quota) / int(period) if quota.isdigit() and int(quota) > 0 else None
