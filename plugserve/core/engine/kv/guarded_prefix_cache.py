"""Wraps a prefix cache plugin: checks its results, measures its time, and replaces it when it fails.

Core keeps its own record of the hash of each indexed block and of the released blocks. A result that disagrees with
them - a block that is out of range, in use, or indexed under another hash - is a failure like an exception, because a
request would read another one's keys and values. After a failure nothing is matched or indexed for this model; the
blocks that the plugin held are evicted in the order in which they were released, so none is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

from plugserve.core.contracts.prefix_cache import PrefixCache
from plugserve.core.plugin_system.failure_policy import STRATEGY_POLICIES
from plugserve.core.plugin_system.plugin_guard import PluginGuard

_POLICY: Final = STRATEGY_POLICIES["prefix cache"]
Result = TypeVar("Result")


class GuardedPrefixCache:
    """PrefixCache around another, of plugin. guard counts its time and failures."""

    def __init__(self, inner: PrefixCache, plugin: str, guard: PluginGuard) -> None:
        self._inner: PrefixCache = inner
        self._plugin = plugin
        self._guard = guard
        self._hash_of: dict[int, bytes] = {}  # of indexed blocks
        self._released: dict[int, None] = {}  # indexed blocks without a user, in order of release
        self.is_switched_off = False

    def count_from_zero(self) -> None:
        """Show the calls that are timed in the guard's counts before there is one."""
        for call in ("match", "insert", "evict"):
            self._guard.note_time(self._plugin, call, 0.0)

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        return self._timed("match", lambda: self._checked_match(hashes, self._inner.match(hashes)), list)

    def insert(self, hash: bytes, block: int) -> bool:
        if not self._timed("insert", lambda: _checked_bool(self._inner.insert(hash, block)), bool):
            return False
        self._hash_of[block] = hash
        return True

    def evict(self, num_blocks: int) -> list[int]:
        evicted = self._timed(
            "evict",
            lambda: self._checked_evicted(self._inner.evict(num_blocks), min(num_blocks, len(self._released))),
            lambda: list(islice(self._released, num_blocks)),
        )
        for block in evicted:
            del self._released[block], self._hash_of[block]
        return evicted

    def retain(self, block: int) -> None:
        self._released.pop(block, None)
        self._call("retain", lambda: self._inner.retain(block))

    def release(self, block: int) -> None:
        self._released[block] = None
        self._call("release", lambda: self._inner.release(block))

    def clear(self) -> list[int]:
        cleared = list(self._released)
        self._call("clear", lambda: self._checked_evicted(self._inner.clear(), len(cleared)))
        self._released.clear()
        self._hash_of.clear()
        return cleared

    def holds(self, block: int) -> bool:
        return block in self._hash_of

    @property
    def num_evictable(self) -> int:
        return len(self._released)

    # ------------------------------------------------ results, checked against core's records

    def _checked_match(self, hashes: Sequence[bytes], blocks: Any) -> list[int]:
        if not isinstance(blocks, list) or len(blocks) > len(hashes):
            raise ValueError(f"it must return a list of at most {len(hashes)} blocks, got {blocks!r:.100}")
        for hash, block in zip(hashes, blocks, strict=False):
            if self._hash_of.get(block) != hash:
                raise ValueError(f"it returned block {block!r:.20}, which is not indexed under that hash")
        return blocks

    def _checked_evicted(self, blocks: Any, num_wanted: int) -> list[int]:
        if not isinstance(blocks, list) or len(blocks) != num_wanted or len(set(blocks)) != num_wanted:
            raise ValueError(f"it must return {num_wanted} different released blocks, got {blocks!r:.100}")
        for block in blocks:
            if block not in self._released:
                raise ValueError(f"it returned block {block!r:.20}, which is not released")
        return blocks

    # ------------------------------------------------ calls

    def _timed(self, call: str, work: Callable[[], Result], otherwise: Callable[[], Result]) -> Result:
        started_s = time.perf_counter()
        try:
            return work()
        except BaseException as error:
            self._switch_off(call, error)
            return otherwise()
        finally:
            self._guard.note_time(self._plugin, call, time.perf_counter() - started_s)

    def _call(self, call: str, work: Callable[[], Any]) -> None:
        try:
            work()
        except BaseException as error:
            self._switch_off(call, error)

    def _switch_off(self, call: str, error: BaseException) -> None:
        """Replace the plugin, which is not called again; its blocks remain evictable."""
        self._guard.note_failure(self._plugin, call, error, _POLICY)
        self.is_switched_off = True
        self._inner = _EvictOnlyCache(self._released)


class _EvictOnlyCache:
    """PrefixCache that replaces a failed one: it evicts released blocks and indexes nothing."""

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


def _checked_bool(result: Any) -> bool:
    if not isinstance(result, bool):
        raise ValueError(f"it must return True or False, got {result!r:.100}")
    return result
