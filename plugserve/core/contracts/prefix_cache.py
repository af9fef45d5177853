"""Prefix caches: an index from block hashes to blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class PrefixCache(Protocol):
    """An index from block hashes to KV blocks. Core owns the blocks and their reference counts; the index only
    maps hashes to blocks. Hashes are chained (a hash depends on all tokens up to the end of its block) and
    salted with model, adapter and the request's cache_salt, so equal hashes mean equal keys and values.

    Called from the engine's thread: match once an admission, insert when blocks fill, release and evict as blocks'
    reference counts fall to zero and memory runs short. No call is O(cache size).
    """

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """Blocks of the longest known prefix of hashes, in order."""

    def insert(self, hash: bytes, block: int) -> bool:
        """Index a full block. False when another block has this hash already (block stays unindexed)."""

    def retain(self, block: int) -> None:
        """block is in use (again): it may not be evicted."""

    def release(self, block: int) -> None:
        """block has no user left; it may be evicted from now on. Only called for indexed blocks."""

    def evict(self, num_blocks: int) -> list[int]:
        """Forget up to num_blocks released blocks, least valuable first, and return them to core."""

    def clear(self) -> list[int]:
        """Forget everything; returns the released blocks (which core frees)."""

    @property
    def num_evictable(self) -> int:
        """How many blocks evict could return now."""

    def holds(self, block: int) -> bool:
        """True when block is indexed."""
