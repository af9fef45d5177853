"""The memory of a container is its cgroup's, of version 1 and 2, and cached pages of files are free."""

from __future__ import annotations

import pytest

from plugserve.core.memory import machine

GIB = 1 << 30
MEMINFO = "MemTotal: 8388608 kB\nMemFree: 100 kB\nMemAvailable: 4194304 kB\nHugePages_Total: 0\n"


@pytest.fixture
def machine_of(tmp_path, monkeypatch):
    """A machine of 8 GiB, 4 of them available, with these files below /sys/fs/cgroup and this /proc/self/cgroup."""

    def make(own_cgroup, **files):
        proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
        (proc / "self").mkdir(parents=True)
        (proc / "meminfo").write_text(MEMINFO)
        (proc / "self" / "cgroup").write_text(own_cgroup)
        for path, text in files.items():
            file = cgroups / path.replace("__", "/").replace("_dot_", ".")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        monkeypatch.setattr(machine, "_PROC", proc)
        monkeypatch.setattr(machine, "_CGROUPS", cgroups)
        monkeypatch.setattr(machine.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096}.get(name, 8 * GIB // 4096))
        return machine.host_memory()

    return make


def test_machine_without_limits(machine_of):
    assert machine_of("0::/\n") == machine.HostMemory(8 * GIB, 4 * GIB, "machine")


def test_limit_of_version_2(machine_of):
    found = machine_of(
        "0::/\n",
        memory_dot_max=f"{2 * GIB}\n",
        memory_dot_current=f"{GIB}\n",
        memory_dot_stat=f"anon 5\ninactive_file {GIB // 2}\nactive_file {GIB // 4}\n",
    )
    assert found == machine.HostMemory(2 * GIB, 2 * GIB - GIB // 4, "container (cgroup)")


def test_limit_of_version_1(machine_of):
    found = machine_of(
        "4:memory:/docker/abc\n",  # the host's path, which a container doesn't see
        memory__memory_dot_limit_in_bytes=str(2 * GIB),
        memory__memory_dot_usage_in_bytes=str(GIB),
        memory__memory_dot_stat=f"inactive_file 0\ntotal_inactive_file {GIB // 2}\ntotal_active_file 0\n",
    )
    assert found == machine.HostMemory(2 * GIB, 2 * GIB - GIB // 2, "container (cgroup)")


def test_limit_of_an_outer_cgroup_counts(machine_of):
    found = machine_of(
        "0::/slice/service\n",
        slice__memory_dot_max=str(3 * GIB),
        slice__memory_dot_current=str(GIB),
        slice__service__memory_dot_max="max\n",
        slice__service__memory_dot_current="1",
    )
    assert found == machine.HostMemory(3 * GIB, 2 * GIB, "container (cgroup)")


def test_use_over_the_limit_leaves_nothing(machine_of):
    assert machine_of("0::/\n", memory_dot_max="100", memory_dot_current="200").available_bytes == 0


def test_own_process_has_memory():
    own = machine.process_memory()
    assert 0 < own.resident_bytes <= own.peak_bytes


def test_oom_kills_are_counted_by_machine_and_cgroup(machine_of, tmp_path):
    machine_of("0::/\n", memory_dot_max="max", memory_dot_events="low 0\noom 9\noom_kill 2\noom_group_kill 7\n")
    assert machine.num_oom_kills() == 2
    (tmp_path / "proc" / "vmstat").write_text("nr_free_pages 5\noom_kill 4\n")
    assert machine.num_oom_kills() == 4


def test_oom_kills_of_version_1(machine_of):
    machine_of("4:memory:/\n", memory__memory_dot_limit_in_bytes="9", memory__memory_dot_oom_control="oom_kill 3\n")
    assert machine.num_oom_kills() == 3
