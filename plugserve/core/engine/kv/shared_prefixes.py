"""Finds running sequences that compute a prefix that waiting sequences share. Torch-free.

Without this, requests with the same beginning that arrive together would all compute it, because its blocks are cached
only when they are complete. A waiting sequence takes nothing (num_pending is 0) while a running one, its producer,
computes blocks that both begin with, and starts from them afterwards. It only waits for what a step in flight computes,
so it starts as soon as its producer pauses, is preempted or leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


class PrefixProducer(Protocol):
    """A running sequence whose prompt is being computed."""

    id: int
    is_running: bool
    num_computed: int
    num_in_flight: int
    block_size: int

    @property
    def block_hashes(self) -> list[bytes]: ...


@dataclass(slots=True)
class PendingPrefix:
    """num_tokens tokens that producer has computed, or is computing."""

    producer: PrefixProducer
    num_tokens: int

    @property
    def is_on_its_way(self) -> bool:
        """Some of the tokens are being computed: waiting pays."""
        producer = self.producer
        return producer.is_running and producer.num_in_flight > 0 and producer.num_computed < self.num_tokens


@dataclass(slots=True)
class SharedPrefixes:
    """The running sequences that still compute full blocks of their prompts, by id."""

    producers: dict[int, PrefixProducer] = field(default_factory=dict)

    def add(self, producer: PrefixProducer) -> None:
        """Add a sequence that has started."""
        if producer.num_computed < len(producer.block_hashes) * producer.block_size:
            self.producers[producer.id] = producer

    def update(self, producer: PrefixProducer) -> None:
        """Update a sequence that has computed tokens."""
        if self.producers and producer.num_computed >= len(producer.block_hashes) * producer.block_size:
            self.producers.pop(producer.id, None)

    def remove(self, id: int) -> None:
        """Remove a sequence that no longer runs. Unknown ids are ignored."""
        self.producers.pop(id, None)

    def find(self, hashes: Sequence[bytes], start: int, stop: int) -> PendingPrefix | None:
        """The prefix common with hashes[:stop] of a sequence whose step in flight computes the block hashes[start]."""
        if start >= stop:
            return None
        for producer in self.producers.values():
            theirs, first_missing = producer.block_hashes, producer.num_computed // producer.block_size
            is_on_its_way = producer.num_in_flight > 0 and first_missing <= start < len(theirs)
            if is_on_its_way and theirs[start] == hashes[start]:
                return PendingPrefix(producer, _num_common(hashes, theirs, start, stop) * producer.block_size)
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
