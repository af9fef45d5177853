"""Prefix cache by block hashes with least-recently-used eviction. Maps hashes to blocks; owns no memory.

Released blocks stand in order of release; the block pool releases a sequence's blocks from the last to the first, so
the ends of prefixes are evicted before their beginnings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

from plugserve.core.contracts.factories import PrefixCacheContext, PrefixCacheFactory
from plugserve.core.plugin_system.hookspecs import hookimpl


class BlockHashCache:
    """PrefixCache over two dicts and an ordered one; every call is O(1) a block."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._released: dict[int, None] = {}  # insertion order = order of release

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        blocks = []
        for hash in hashes:
            block = self._block_of.get(hash)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def insert(self, hash: bytes, block: int) -> bool:
        if hash in self._block_of:
            return False
        self._block_of[hash] = block
        self._hash_of[block] = hash
        return True

    def retain(self, block: int) -> None:
        self._released.pop(block, None)

    def release(self, block: int) -> None:
        self._released[block] = None

    def evict(self, num_blocks: int) -> list[int]:
        evicted = list(islice(self._released, num_blocks))
        for block in evicted:
            del self._released[block]
            del self._block_of[self._hash_of.pop(block)]
        return evicted

    def clear(self) -> list[int]:
        released = list(self._released)
        self._block_of.clear()
        self._hash_of.clear()
        self._released.clear()
        return released

    @property
    def num_evictable(self) -> int:
        return len(self._released)

    def holds(self, block: int) -> bool:
        return block in self._hash_of


def make_block_hash_cache(context: PrefixCacheContext) -> BlockHashCache:
    return BlockHashCache()


@hookimpl
def plugserve_prefix_caches() -> Mapping[str, PrefixCacheFactory]:
    return {"prefix-cache": make_block_hash_cache}
