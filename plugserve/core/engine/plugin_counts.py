"""Counts plugins' time and failures in an engine's stats: the listener of its process's PluginGuard."""

from __future__ import annotations

from plugserve.core.contracts.engine_facts import EngineStats


class PluginCounts:
    """CallListener that counts into stats, by "plugin call"."""

    def __init__(self, stats: EngineStats) -> None:
        self._stats = stats

    def spent(self, plugin: str, hook: str, seconds: float) -> None:
        counts, key = self._stats.plugin_seconds, f"{plugin} {hook}"
        counts[key] = counts.get(key, 0.0) + seconds
        _count(self._stats.plugin_calls, key)

    def failed(self, plugin: str, hook: str) -> None:
        _count(self._stats.plugin_errors, f"{plugin} {hook}")

    def set_aside(self, plugin: str, hook: str) -> None:
        _count(self._stats.plugin_quarantines, f"{plugin} {hook}")


def _count(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1
