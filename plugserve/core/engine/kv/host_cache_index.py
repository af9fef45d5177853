"""An index from block hashes to host slots: blocks that the prefix cache evicted from the device, kept in host memory.

An entry can be found once the step that copied it out has been collected; before that, a failure might have prevented
the copy. It is kept when it is copied back in, so that its next eviction needs no copy. The least recently used entry
is replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
        self._arriving: dict[bytes, Arrival] = {}
        self._queued: list[Arrival] = []

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """Slots of the longest run at the start of hashes that is held here."""
        slots: list[int] = []
        for hash in hashes:
            slot = self._slot_of.get(hash)
            if slot is None:
                break
            slots.append(slot)
        return slots

    def keep(self, hash: bytes, block: int) -> None:
        """block is about to be evicted from the device: copy it out, if a slot is free or can be freed."""
        if hash in self._slot_of:
            self.touch([hash])
            return
        if hash in self._arriving:
            return
        slot = self.slots.allocate()
        if slot is None:
            slot = self._make_room()
        if slot is None:
            return
        self.slots.copy_out(block, slot)
        arrival = Arrival(hash, slot)
        self._arriving[hash] = arrival
        self._queued.append(arrival)

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
                self._slot_of[arrival.hash] = arrival.slot

    def lost(self, arrivals: Sequence[Arrival]) -> None:
        """Their step failed: the contents of their slots are undefined."""
        for arrival in arrivals:
            if self._arriving.get(arrival.hash) is arrival:
                del self._arriving[arrival.hash]
                self.slots.free(arrival.slot)

    def clear(self) -> None:
        """Forget everything. Copies under way may still be made; what they write is overwritten or never read."""
        for slot in self._slot_of.values():
            self.slots.free(slot)
        for arrival in self._arriving.values():
            self.slots.free(arrival.slot)
        self._slot_of.clear()
        self._arriving.clear()

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every used slot has one entry here, arrived or in flight."""
        self.slots.check_integrity([*self._slot_of.values(), *(arrival.slot for arrival in self._arriving.values())])
