"""Wraps a prefix cache plugin: measures its time, and replaces it by an empty cache when it raises.

After a plugin has raised, nothing is matched or remembered for this model. The blocks that it held without a reference
are listed here too, so none is lost: they are evicted in the order in which they were released.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TypeVar

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.contracts.prefix_cache import PrefixCache

log = logging.getLogger(__name__)
Result = TypeVar("Result")


class GuardedPrefixCache:
    """PrefixCache around another, of plugin. What it costs and how it fails goes to the stats given to report_to."""

    def __init__(self, inner: PrefixCache, plugin: str) -> None:
        self._inner: PrefixCache = inner
        self._plugin = plugin
        self._released: dict[int, None] = {}  # in order of release
        self._stats = EngineStats()
        self.is_set_aside = False

    def report_to(self, stats: EngineStats) -> None:
        """Count into stats from now on; keys are the plugin's name and the call."""
        self._stats = stats
        for call in ("match", "insert", "evict"):
            stats.plugin_seconds.setdefault(f"{self._plugin} {call}", 0.0)

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        return self._timed("match", lambda: self._inner.match(hashes), list)

    def insert(self, hash: bytes, block: int) -> bool:
        return self._timed("insert", lambda: self._inner.insert(hash, block), bool)

    def evict(self, num_blocks: int) -> list[int]:
        evicted = self._timed("evict", lambda: self._inner.evict(num_blocks), lambda: self._take(num_blocks))
        for block in evicted:
            self._released.pop(block, None)
        return evicted

    def retain(self, block: int) -> None:
        self._released.pop(block, None)
        try:
            self._inner.retain(block)
        except Exception as error:
            self._set_aside("retain", error)

    def release(self, block: int) -> None:
        self._released[block] = None
        try:
            self._inner.release(block)
        except Exception as error:
            self._set_aside("release", error)

    def holds(self, block: int) -> bool:
        try:
            return self._inner.holds(block)
        except Exception as error:
            self._set_aside("holds", error)
            return block in self._released

    @property
    def num_evictable(self) -> int:
        try:
            return self._inner.num_evictable
        except Exception as error:
            self._set_aside("num_evictable", error)
            return len(self._released)

    def clear(self) -> list[int]:
        try:
            cleared = self._inner.clear()
        except Exception as error:
            self._set_aside("clear", error)
            cleared = list(self._released)
        self._released.clear()
        return cleared

    def _timed(self, call: str, work: Callable[[], Result], otherwise: Callable[[], Result]) -> Result:
        started_s = time.perf_counter()
        try:
            return work()
        except Exception as error:
            self._set_aside(call, error)
            return otherwise()
        finally:
            seconds = self._stats.plugin_seconds
            key = f"{self._plugin} {call}"
            seconds[key] = seconds.get(key, 0.0) + time.perf_counter() - started_s

    def _take(self, num_blocks: int) -> list[int]:
        return list(islice(self._released, num_blocks))

    def _set_aside(self, call: str, error: Exception) -> None:
        """The plugin is not called again; the blocks that it held stay evictable."""
        log.error(
            "prefix cache plugin=%s raised %s in %s; it is off for this model until the engine starts again",
            self._plugin,
            type(error).__name__,
            call,
            exc_info=error,
        )
        key = f"{self._plugin} {call}"
        for counts in (self._stats.plugin_errors, self._stats.plugin_quarantines):
            counts[key] = counts.get(key, 0) + 1
        self.is_set_aside = True
        self._inner = _Leftovers(self._released)


class _Leftovers:
    """PrefixCache that gives back what is left of another one, and remembers nothing new. Shares released with its
    owner, who keeps it."""

    def __init__(self, released: dict[int, None]) -> None:
        self._released = released

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        return []

    def insert(self, hash: bytes, block: int) -> bool:
        return False

    def retain(self, block: int) -> None: ...

    def release(self, block: int) -> None: ...

    def evict(self, num_blocks: int) -> list[int]:
        return list(islice(self._released, num_blocks))

    def clear(self) -> list[int]:
        return list(self._released)

    @property
    def num_evictable(self) -> int:
        return len(self._released)

    def holds(self, block: int) -> bool:
        return block in self._released
