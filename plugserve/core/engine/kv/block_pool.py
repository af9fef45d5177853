"""Blocks of KV memory and their reference counts. Numbers only: no requests, tokens or tensors.

A block is in exactly one state:

    free       no reference, not indexed           on the free list
    cached     no reference, held by the index     evictable: counts as free
    in use     one reference or more               possibly also indexed, then others may share it
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from plugserve.core.contracts.prefix_cache import PrefixCache
from plugserve.core.flight.block_map import CACHED, FREE, IN_USE


class EvictedBlocks(Protocol):
    """Receives evicted blocks (host_cache_index.HostCacheIndex)."""

    def match(self, hashes: Sequence[bytes]) -> list[int]: ...

    def keep(self, hash: bytes, block: int) -> None: ...

    def clear(self) -> None: ...


class NoEvictedBlocks:
    """Drops evicted blocks."""

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        return []

    def keep(self, hash: bytes, block: int) -> None: ...

    def clear(self) -> None: ...


class NullPrefixCache:
    """An empty index, for a pool without a prefix cache."""

    num_evictable = 0

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        return []

    def insert(self, hash: bytes, block: int) -> bool:
        return False

    def retain(self, block: int) -> None: ...

    def release(self, block: int) -> None: ...

    def evict(self, num_blocks: int) -> list[int]:
        return []

    def clear(self) -> list[int]:
        return []

    def holds(self, block: int) -> bool:
        return False


class IntegrityError(AssertionError):
    """The pool's counts are inconsistent: a bug in plugserve or in the prefix cache plugin."""


class BlockPool:
    """num_blocks blocks, numbered from 0, with reference counts. Not thread-safe: the engine's thread owns it.

    evicted gets the blocks that index evicts, right before they are allocated anew.
    """

    def __init__(self, num_blocks: int, index: PrefixCache | None = None, evicted: EvictedBlocks | None = None) -> None:
        self.num_blocks = num_blocks
        self._evicted: EvictedBlocks = evicted if evicted is not None else NoEvictedBlocks()
        self._keeps_evicted = evicted is not None
        self._hash_of: dict[int, bytes] = {}  # of indexed blocks, where evicted ones are kept
        self.index: PrefixCache = index if index is not None else NullPrefixCache()
        self.version = 0  # grows when what match() would answer may have changed
        self._references = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now, including those that the index would evict."""
        return len(self._free) + self.index.num_evictable

    def allocate(self, num_blocks: int) -> list[int]:
        """Take num_blocks blocks with one reference each. The caller has checked num_free; raises IntegrityError."""
        if num_blocks > len(self._free):
            self._evict(num_blocks - len(self._free))
        if num_blocks > len(self._free):
            raise IntegrityError(f"{num_blocks} blocks asked for, {len(self._free)} free: the plan was not checked")
        if not num_blocks:
            return []
        blocks = self._free[-num_blocks:]
        del self._free[-num_blocks:]
        blocks.reverse()
        for block in blocks:
            self._references[block] = 1
        return blocks

    def free(self, blocks: Iterable[int]) -> None:
        """Release one reference of each block. Without references a block is free, or evictable if it is indexed."""
        for block in blocks:
            count = self._references[block] - 1
            if count < 0:
                raise IntegrityError(f"block {block} was freed more often than it was taken")
            self._references[block] = count
            if count == 0:
                if self.index.holds(block):
                    self.index.release(block)
                else:
                    self._free.append(block)

    def states(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """FREE, CACHED or IN_USE (flight/block_map.py) for each block. Takes milliseconds for many blocks."""
        states = np.where(np.array(self._references) > 0, np.uint8(IN_USE), np.uint8(CACHED))
        states[self._free] = FREE
        return states

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """Blocks that hold the longest known prefix of hashes; takes no reference (see share)."""
        return self.index.match(hashes)

    def match_host(self, hashes: Sequence[bytes]) -> list[int]:
        """Host slots that hold the longest known run at the start of hashes."""
        return self._evicted.match(hashes)

    def share(self, blocks: Iterable[int]) -> None:
        """Take one more reference of blocks that match returned in this same step."""
        for block in blocks:
            if self._references[block] == 0:
                self.index.retain(block)
            self._references[block] += 1

    def remember(self, hash: bytes, block: int) -> None:
        """Index a full block that is in use, and not indexed yet. Does nothing if another block has this hash."""
        if self.index.insert(hash, block):
            if self._keeps_evicted:
                self._hash_of[block] = hash
            self.version += 1

    def num_unreferenced(self, blocks: Iterable[int]) -> int:
        """The number of blocks without a reference: sharing them takes them out of num_free."""
        return sum(self._references[block] == 0 for block in blocks)

    def unshared(self, blocks: Iterable[int]) -> list[int]:
        """Those of blocks with one reference, which become free when their holder frees them."""
        return [block for block in blocks if self._references[block] == 1]

    def clear_index(self) -> None:
        """Forget every cached prefix; blocks in use stay in use."""
        self._free.extend(self.index.clear())
        self._hash_of.clear()
        self._evicted.clear()
        self.version += 1

    def _evict(self, num_blocks: int) -> None:
        evicted = self.index.evict(num_blocks)
        for block in evicted:
            if self._references[block]:
                raise IntegrityError(f"the prefix cache evicted block {block}, which is in use")
        if self._keeps_evicted:
            for block in evicted:
                self._evicted.keep(self._hash_of.pop(block), block)
        self._free.extend(evicted)
        self.version += 1

    def check_integrity(self, owners: Iterable[Sequence[int]]) -> None:
        """Raise IntegrityError unless owners' blocks explain every reference and every block is in one state."""
        held = Counter(block for blocks in owners for block in blocks)
        free = set(self._free)
        if len(free) != len(self._free):
            raise IntegrityError("a block is on the free list twice")
        num_cached = 0
        for block, count in enumerate(self._references):
            if count != held[block]:
                raise IntegrityError(f"block {block} has {count} references, its owners hold {held[block]}")
            if block in free and (count or self.index.holds(block)):
                raise IntegrityError(f"block {block} is free and in use at once")
            if count == 0 and block not in free:
                if not self.index.holds(block):
                    raise IntegrityError(f"block {block} is lost: no reference, not free, not cached")
                num_cached += 1
        if num_cached != self.index.num_evictable:
            raise IntegrityError(
                f"the prefix cache reports {self.index.num_evictable} evictable blocks, there are {num_cached}"
            )
