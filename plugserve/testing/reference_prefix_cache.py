"""A minimal correct prefix cache, the reference of the tests. Evicts in the order of release."""

from __future__ import annotations

from collections.abc import Sequence


class ReferencePrefixCache:
    """PrefixCache over one dict; all calls except match and insert take linear time."""

    def __init__(self) -> None:
        self._blocks: dict[bytes, int] = {}
        self._released: list[int] = []

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        blocks: list[int] = []
        for hash in hashes:
            if hash not in self._blocks:
                break
            blocks.append(self._blocks[hash])
        return blocks

    def insert(self, hash: bytes, block: int) -> bool:
        return self._blocks.setdefault(hash, block) == block

    def retain(self, block: int) -> None:
        self._released.remove(block)

    def release(self, block: int) -> None:
        self._released.append(block)

    def evict(self, num_blocks: int) -> list[int]:
        evicted, self._released = self._released[:num_blocks], self._released[num_blocks:]
        self._blocks = {hash: block for hash, block in self._blocks.items() if block not in evicted}
        return evicted

    def clear(self) -> list[int]:
        released, self._released, self._blocks = self._released, [], {}
        return released

    @property
    def num_evictable(self) -> int:
        return len(self._released)

    def holds(self, block: int) -> bool:
        return block in self._blocks.values()
