"""Who computes a prefix right now that others will ask for. Knows nothing of blocks in memory or of scheduling.

Without this, requests that begin alike and arrive together would all compute the same beginning, because none of its
blocks is known before the first of them is done. A waiting sequence lets itself be led: it takes nothing (num_pending
is 0) while a running one computes blocks that both begin with, and starts from them afterwards. It only waits for what
a step in flight computes, so it goes its own way as soon as its leader pauses, is preempted or leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Leader(Protocol):
    """A running sequence whose prompt is being computed."""

    id: int
    is_running: bool
    num_computed: int
    num_in_flight: int
    block_size: int
    block_hashes: list[bytes]


@dataclass(slots=True)
class Lead:
    """Wait until leader has computed num_tokens tokens."""

    leader: Leader
    num_tokens: int

    @property
    def holds(self) -> bool:
        """The wait still pays: the tokens are on their way."""
        leader = self.leader
        return leader.is_running and leader.num_in_flight > 0 and leader.num_computed < self.num_tokens


@dataclass(slots=True)
class SharedPrefixes:
    """The running sequences that still compute full blocks of their prompts, by id."""

    leaders: dict[int, Leader] = field(default_factory=dict)

    def add(self, leader: Leader) -> None:
        """It has started."""
        if leader.num_computed < len(leader.block_hashes) * leader.block_size:
            self.leaders[leader.id] = leader

    def update(self, leader: Leader) -> None:
        """It has computed more."""
        if self.leaders and leader.num_computed >= len(leader.block_hashes) * leader.block_size:
            self.leaders.pop(leader.id, None)

    def remove(self, id: int) -> None:
        """It no longer runs. Unknown ids are ignored."""
        self.leaders.pop(id, None)

    def find(self, hashes: Sequence[bytes], start: int, stop: int) -> Lead | None:
        """Who computes the block hashes[start] in a step in flight, and how far it goes along with hashes[:stop]."""
        if start >= stop:
            return None
        for leader in self.leaders.values():
            theirs, first_missing = leader.block_hashes, leader.num_computed // leader.block_size
            is_on_its_way = leader.num_in_flight > 0 and first_missing <= start < len(theirs)
            if is_on_its_way and theirs[start] == hashes[start]:
                return Lead(leader, _num_common(hashes, theirs, start, stop) * leader.block_size)
        return None


def _num_common(one: Sequence[bytes], other: Sequence[bytes], start: int, stop: int) -> int:
    """Blocks, stop at most, that both begin with, being equal up to start. Hashes are chained, so nothing is equal
    behind a difference."""
    low, high = start + 1, min(stop, len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[middle - 1] == other[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
