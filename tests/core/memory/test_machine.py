"""Threads follow what the process may use, not what the machine has."""

from __future__ import annotations

import pytest

from plugserve.core.memory import machine


@pytest.mark.parametrize(("quota", "cores"), [(None, 4), (2.0, 2), (1.5, 2), (0.1, 1), (64.0, 4)])
def test_cores_are_bounded_by_affinity_and_quota(monkeypatch, quota, cores):
    monkeypatch.setattr(machine, "_cgroup_quota", lambda: quota)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    assert machine.usable_cores() == cores
