"""Which upstreams of a router, or engines of a model, have computed which prefix blocks: a bounded table, the least
recently used blocks leave first.

An owner is a number that an upstream or engine gets at each recovery, so what it held before it went down is forgotten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

MAX_ENTRIES: Final = 131_072  # about 30 MB
_BRANCHES_PER_HOLDER: Final = 8
_MOST_OWNERS: Final = 64  # of a block, the newest ones


@dataclass(slots=True)
class _Block:
    """owners have computed it. num_branches counts requests that shared it and went on differently."""

    owners: tuple[int, ...]
    is_followed: bool = False
    num_branches: int = 0


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """The longest known beginning of a request. holders have it; is_branch: other requests went on differently from
    here, so it is a new conversation. is_crowded: so many did that another owner should compute it too."""

    num_blocks: int
    holders: tuple[int, ...]
    is_branch: bool = False
    is_crowded: bool = False


_NO_MATCH: Final = PrefixMatch(0, ())


class PrefixTable:
    """Blocks by hash, with the owners that requests with them were sent to."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._blocks: dict[int, _Block] = {}  # the least recently used one is the first
        self._num_owned: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._blocks)

    def num_owned(self, owner: int) -> int:
        """The number of blocks that an owner is known to have computed."""
        return self._num_owned[owner]

    def match(self, hashes: Sequence[int], owners: Collection[int]) -> PrefixMatch:
        """The longest beginning that one of owners holds."""
        deepest: _Block | None = None
        holders: tuple[int, ...] = ()
        num_blocks = 0
        for hash in hashes:
            block = self._blocks.get(hash)
            found = tuple(owner for owner in block.owners if owner in owners) if block is not None else ()
            if not found:
                break
            deepest, holders = block, found
            num_blocks += 1
        if deepest is None:
            return _NO_MATCH
        is_branch = num_blocks < len(hashes) and deepest.is_followed
        if is_branch:
            deepest.num_branches += 1
        is_crowded = is_branch and deepest.num_branches > _BRANCHES_PER_HOLDER * len(holders)
        return PrefixMatch(num_blocks, holders, is_branch, is_crowded)

    def note(self, hashes: Sequence[int], owner: int) -> None:
        """A request with these blocks is sent to owner."""
        for position, hash in enumerate(hashes):
            block = self._blocks.pop(hash, None)
            if block is None:
                block = _Block((owner,))
                self._num_owned[owner] += 1
            elif owner not in block.owners:
                self._disown(block.owners[: 1 - _MOST_OWNERS])
                block.owners = (*block.owners, owner)[-_MOST_OWNERS:]
                self._num_owned[owner] += 1
            block.is_followed = block.is_followed or position + 1 < len(hashes)
            self._blocks[hash] = block
        while len(self._blocks) > self._max_entries:
            oldest = next(iter(self._blocks))
            self._disown(self._blocks.pop(oldest).owners)

    def _disown(self, owners: Collection[int]) -> None:
        for owner in owners:
            self._num_owned[owner] -= 1
            if self._num_owned[owner] <= 0:
                del self._num_owned[owner]
