"""An index from block hashes to host slots: blocks in host memory that the prefix cache evicted from the device, or
that a preempted sequence comes back to.

An entry can be found once the step that copied it out has been collected; before that, a failure might have prevented
the copy. It is kept when it is copied back in, so that its next eviction needs no copy. The least recently used entry
is replaced, but none that a preempted sequence has pinned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from plugserve.core.engine.kv.block_pool import IntegrityError
from plugserve.core.engine.kv.host_slots import HostSlots


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    """An entry whose copy out is queued or in flight."""

    hash: bytes
    slot: int


class HostCacheIndex:
    """hash -> slot of slots, in order of use. Every call is O(1) a block."""

    def __init__(self, slots: HostSlots) -> None:
        self.slots = slots
        self._slot_of: dict[bytes, int] = {}  # insertion order = order of use
        self._pinned_slot_of: dict[bytes, int] = {}
        self._pins: Counter[bytes] = Counter()  # of hashes that may not have arrived, or have got lost
        self._arriving: dict[bytes, Arrival] = {}
        self._queued: list[Arrival] = []

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """Slots of the longest run at the start of hashes that is held here."""
        slots: list[int] = []
        for hash in hashes:
            slot = self._slot_of.get(hash)
            if slot is None:
                slot = self._pinned_slot_of.get(hash)
            if slot is None:
                break
            slots.append(slot)
        return slots

    def keep(self, hash: bytes, block: int) -> None:
        """block is about to be evicted from the device: copy it out, if a slot is free or can be freed."""
        if hash in self._slot_of:
            self.touch([hash])
        elif not self._is_known(hash):
            self._add(hash, block)

    def _is_known(self, hash: bytes) -> bool:
        return hash in self._slot_of or hash in self._pinned_slot_of or hash in self._arriving

    def _add(self, hash: bytes, block: int) -> bool:
        slot = self.allocate()
        if slot is None:
            return False
        self.slots.copy_out(block, slot)
        arrival = Arrival(hash, slot)
        self._arriving[hash] = arrival
        self._queued.append(arrival)
        return True

    def allocate(self) -> int | None:
        """A slot: a free one, or that of the least recently used entry; None where there is neither."""
        slot = self.slots.allocate()
        return self._make_room() if slot is None else slot

    def has_room(self, hashes: Sequence[bytes], num_slots: int) -> bool:
        """hashes can be pinned, and num_slots more slots allocated."""
        num_new = sum(not self._is_known(hash) for hash in hashes)
        num_kept = sum(hash in self._slot_of for hash in hashes)
        return num_new + num_slots <= self.slots.num_free + len(self._slot_of) - num_kept

    def pin(self, hashes: Sequence[bytes], blocks: Sequence[int]) -> bool:
        """Keep hashes, which are those of blocks on the device, until unpin: copy out those that are not here. False
        where there is no room for all; then none is pinned."""
        self._pins.update(hashes)
        for hash in hashes:
            if hash in self._slot_of:
                self._pinned_slot_of[hash] = self._slot_of.pop(hash)
        for hash, block in zip(hashes, blocks, strict=False):
            if not self._is_known(hash) and not self._add(hash, block):
                self.unpin(hashes)
                return False
        return True

    def unpin(self, hashes: Sequence[bytes]) -> None:
        """Undo one pin of each. Those without any are the most recently used entries, the end of a prefix first."""
        for hash in reversed(hashes):
            self._pins[hash] -= 1
            if not self._pins[hash]:
                del self._pins[hash]
                if hash in self._pinned_slot_of:
                    self._slot_of[hash] = self._pinned_slot_of.pop(hash)

    def _make_room(self) -> int | None:
        """The slot of the entry that was used longest ago; None while that one is being copied in."""
        oldest = next(iter(self._slot_of), None)
        if oldest is None or self.slots.is_held(self._slot_of[oldest]):
            return None
        self.slots.free(self._slot_of.pop(oldest))
        return self.slots.allocate()

    def touch(self, hashes: Sequence[bytes]) -> None:
        """Mark these entries as used. The last of hashes is evicted first: a prefix is useless without its start."""
        for hash in reversed(hashes):
            if hash in self._slot_of:  # pinned ones are in no order
                self._slot_of[hash] = self._slot_of.pop(hash)

    def take_queued(self) -> list[Arrival]:
        """The copies of the step that is launched now; pass them to arrived or lost when the step is collected."""
        if not self._queued:
            return []
        queued, self._queued = self._queued, []
        return queued

    def arrived(self, arrivals: Sequence[Arrival]) -> None:
        """Their step is collected: they can be found from now on."""
        for arrival in arrivals:
            if self._arriving.get(arrival.hash) is arrival:
                del self._arriving[arrival.hash]
                slot_of = self._pinned_slot_of if arrival.hash in self._pins else self._slot_of
                slot_of[arrival.hash] = arrival.slot

    def lost(self, arrivals: Sequence[Arrival]) -> None:
        """Their step failed: the contents of their slots are undefined."""
        for arrival in arrivals:
            if self._arriving.get(arrival.hash) is arrival:
                del self._arriving[arrival.hash]
                self.slots.free(arrival.slot)

    def clear(self) -> None:
        """Forget everything. Copies under way may still be made; what they write is overwritten or never read."""
        for slot in self._used_slots():
            self.slots.free(slot)
        self._slot_of.clear()
        self._pinned_slot_of.clear()
        self._arriving.clear()

    def _used_slots(self) -> list[int]:
        arriving = [arrival.slot for arrival in self._arriving.values()]
        return [*self._slot_of.values(), *self._pinned_slot_of.values(), *arriving]

    def check_integrity(self, own_slots: Iterable[int] = (), pinned: Iterable[bytes] = ()) -> None:
        """Raise IntegrityError unless every used slot has one entry here, arrived or in flight, or is one of own_slots
        of preempted sequences, and the pins are those of pinned."""
        self.slots.check_integrity([*self._used_slots(), *own_slots])
        if self._pins != Counter(pinned):
            raise IntegrityError("the pins of host blocks are not those of the preempted sequences")
        if not self._pinned_slot_of.keys() <= self._pins.keys() or not self._pins.keys().isdisjoint(self._slot_of):
            raise IntegrityError("a host block is kept without a pin, or may go in spite of one")
