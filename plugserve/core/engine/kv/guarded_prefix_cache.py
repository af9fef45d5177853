"""Wraps a prefix cache plugin: measures its time, and replaces it by an empty cache when it raises.

After a plugin has raised, nothing is matched or remembered for this model. The blocks that it held without a reference
are listed here too, so none is lost: they are evicted in the order in which they were released.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TypeVar

from plugserve.core.contracts.prefix_cache import PrefixCache
from plugserve.core.plugin_system.failure_policy import STRATEGY_POLICIES
from plugserve.core.plugin_system.plugin_guard import PluginGuard

Result = TypeVar("Result")


class GuardedPrefixCache:
    """PrefixCache around another, of plugin. guard counts what it costs and how it fails."""

    def __init__(self, inner: PrefixCache, plugin: str, guard: PluginGuard) -> None:
        self._inner: PrefixCache = inner
        self._plugin = plugin
        self._guard = guard
        self._released: dict[int, None] = {}  # in order of release
        self.is_switched_off = False

    def count_from_zero(self) -> None:
        """Show the calls that are timed in the guard's counts before there is one."""
        for call in ("match", "insert", "evict"):
            self._guard.note_time(self._plugin, call, 0.0)

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
        except BaseException as error:
            self._switch_off("retain", error)

    def release(self, block: int) -> None:
        self._released[block] = None
        try:
            self._inner.release(block)
        except BaseException as error:
            self._switch_off("release", error)

    def holds(self, block: int) -> bool:
        try:
            return self._inner.holds(block)
        except BaseException as error:
            self._switch_off("holds", error)
            return block in self._released

    @property
    def num_evictable(self) -> int:
        try:
            return self._inner.num_evictable
        except BaseException as error:
            self._switch_off("num_evictable", error)
            return len(self._released)

    def clear(self) -> list[int]:
        try:
            cleared = self._inner.clear()
        except BaseException as error:
            self._switch_off("clear", error)
            cleared = list(self._released)
        self._released.clear()
        return cleared

    def _timed(self, call: str, work: Callable[[], Result], otherwise: Callable[[], Result]) -> Result:
        started_s = time.perf_counter()
        try:
            return work()
        except BaseException as error:
            self._switch_off(call, error)
            return otherwise()
        finally:
            self._guard.note_time(self._plugin, call, time.perf_counter() - started_s)

    def _take(self, num_blocks: int) -> list[int]:
        return list(islice(self._released, num_blocks))

    def _switch_off(self, call: str, error: BaseException) -> None:
        """The plugin is not called again; what it held stays to be evicted."""
        self._guard.note_failure(self._plugin, call, error, STRATEGY_POLICIES["prefix cache"])
        self.is_switched_off = True
        self._inner = _Leftovers(self._released)


class _Leftovers:
    """PrefixCache that gives back what is left of another one, and remembers nothing new. GuardedPrefixCache keeps
    released, which both share."""

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
