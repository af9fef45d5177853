"""LoRA adapters in the engine: which are loaded, which have a slot on the device, and which sequences wait for one.

At most max_in_memory adapters have their weights in host memory. The least recently used one that no sequence computes
with is dropped for another; it stays known, and is read again from its folder once a sequence gets a slot for it.

At most one adapter for each slot is in use at a time. A sequence whose adapter has a slot, or can take an unused one
(the least recently used is replaced), enters at once. Others wait here, outside the scheduler, and block no other
sequence. So that they don't wait forever for adapters in constant use, one that has waited for longer than PATIENCE_S
closes the slot that was assigned first: later sequences of that slot's adapter wait as well, and the slot gets another
adapter when those that entered have ended. Torch-free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from plugserve.core.engine.kv.block_pool import IntegrityError

if TYPE_CHECKING:
    from plugserve.core.engine.sequence import RequestKey, Sequence

PATIENCE_S = 0.5


@dataclass(slots=True, eq=False)
class Adapter:
    """weights is what LoraManager.read made of the folder path, None while they are not in host memory. num_sequences
    live ones use it, of which num_entered have entered.

    slot is -1 without one; slot_since and used_at count events, for the choice of the slot that is emptied. is_retired:
    unloaded, and forgotten with its last sequence. is_closing: its slot is promised to another adapter. is_reading: it
    has a slot and waits for its weights.
    """

    id: int
    name: str
    weights: Any
    path: str = ""
    num_sequences: int = 0
    num_entered: int = 0
    slot: int = -1
    slot_since: int = 0
    used_at: int = 0
    is_retired: bool = False
    is_closing: bool = False
    is_reading: bool = False


class AdapterPool:
    """Known adapters over num_slots slots, max_in_memory (at least num_slots) of them in host memory.

    waiting holds the sequences that wait for a slot, in order of arrival; num_entered is how many with an adapter may
    be scheduled. changes are the slots to change on the device before the next step: by slot its new weights, None to
    empty it. wanted are the adapters to read again: read them, and call note_read or give_up for each. num_swaps counts
    slots given to an adapter, num_dropped the times that weights were dropped from host memory.
    """

    def __init__(self, num_slots: int, max_in_memory: int, clock: Callable[[], float]) -> None:
        self.waiting: dict[RequestKey, Sequence] = {}
        self.wanted: list[Adapter] = []
        self.num_swaps = 0
        self.num_dropped = 0
        self.num_entered = 0
        self.changes: dict[int, Any] = {}
        self._max_in_memory = max_in_memory
        self._clock = clock
        self._known: dict[int, Adapter] = {}
        self._resident: list[Adapter | None] = [None] * num_slots
        self._events = count(1)
        self._may_admit = False
        self._impatient_at_s = 0.0

    # ---- what is known

    @property
    def num_known(self) -> int:
        """Adapters that are loaded, those that only end their last sequences included."""
        return len(self._known)

    @property
    def num_slots(self) -> int:
        return len(self._resident)

    def names_in_use(self) -> tuple[list[str], list[str]]:
        """The adapters with sequences that have entered, and those with sequences that wait."""
        waiting = {sequence.adapter.name for sequence in self.waiting.values() if sequence.adapter is not None}
        return sorted(one.name for one in self._known.values() if one.num_entered), sorted(waiting)

    @property
    def num_slots_in_use(self) -> int:
        """Slots that hold an adapter."""
        return sum(adapter is not None for adapter in self._resident)

    @property
    def num_in_memory(self) -> int:
        """Adapters whose weights are in host memory or being read into it again."""
        return sum(adapter.weights is not None or adapter.is_reading for adapter in self._known.values())

    def add(self, id: int, name: str, weights: Any, path: str = "") -> None:
        """An adapter was loaded; weights None: it is read when a sequence needs it."""
        self._known[id] = Adapter(id, name, weights, path, used_at=next(self._events))
        self._bound_memory()

    def retire(self, id: int) -> None:
        """Take no new sequences for it, and forget it with its last one. Unknown ids are ignored."""
        adapter = self._known.get(id)
        if adapter is not None:
            adapter.is_retired = True
            self._forget_if_unused(adapter)

    def find(self, id: int) -> Adapter | None:
        """The adapter that new sequences may use."""
        adapter = self._known.get(id)
        return None if adapter is None or adapter.is_retired else adapter

    def _forget_if_unused(self, adapter: Adapter) -> None:
        if adapter.is_retired and not adapter.num_sequences:
            self._take_slot(adapter)
            self._known.pop(adapter.id, None)
            adapter.weights = None

    # ---- host memory

    def note_read(self, id: int, weights: Any) -> None:
        """An adapter of wanted was read. Unknown ids are ignored: it was unloaded meanwhile."""
        adapter = self._known.get(id)
        if adapter is not None and adapter.is_reading:
            adapter.is_reading, adapter.weights = False, weights
            self.changes[adapter.slot] = weights
            self._may_admit = True

    def give_up(self, id: int) -> list[Sequence]:
        """An adapter of wanted can't be read: returns its sequences, which wait no longer. Later ones try again."""
        adapter = self._known.get(id)
        if adapter is None or not adapter.is_reading:
            return []
        self._take_slot(adapter)
        self._may_admit = True
        ended = [sequence for sequence in self.waiting.values() if sequence.adapter is adapter]
        for sequence in ended:
            self.abandon(sequence.key)
        return ended

    def take_wanted(self) -> list[Adapter]:
        """The adapters to read again since the last call."""
        wanted, self.wanted = self.wanted, []
        return wanted

    def _bound_memory(self) -> None:
        """Drop the weights of adapters that no sequence computes with, those without sequences first, then those that
        were not used for longest."""
        num_over = self.num_in_memory - self._max_in_memory
        if num_over <= 0:
            return
        idle = [one for one in self._known.values() if one.weights is not None and not one.num_entered]
        idle.sort(key=lambda one: (one.num_sequences > 0, one.used_at))
        for adapter in idle[:num_over]:
            self._take_slot(adapter)
            adapter.weights = None
            self.num_dropped += 1

    # ---- sequences

    def enter(self, sequence: Sequence) -> bool:
        """A new sequence with an adapter: True when it may be scheduled now, else it waits here."""
        adapter = sequence.adapter
        assert adapter is not None
        adapter.num_sequences += 1
        is_behind = adapter.slot < 0 and bool(self.waiting)
        if not is_behind and self._admit(adapter):
            return True
        if not self.waiting:
            self._impatient_at_s = self._clock() + PATIENCE_S
        self.waiting[sequence.key] = sequence
        self._may_admit = True
        return False

    def abandon(self, key: RequestKey) -> None:
        """A waiting sequence was aborted."""
        sequence = self.waiting.pop(key)
        self._uncount(sequence)
        self._may_admit = True

    def leave(self, sequence: Sequence) -> None:
        """A sequence that had entered has ended. Steps that are launched already still use its adapter's slot, which
        is changed by the next launch at the earliest."""
        assert sequence.adapter is not None
        sequence.adapter.num_entered -= 1
        self.num_entered -= 1
        self._may_admit = True
        self._uncount(sequence)

    def _uncount(self, sequence: Sequence) -> None:
        assert sequence.adapter is not None
        sequence.adapter.num_sequences -= 1
        self._forget_if_unused(sequence.adapter)

    def admissible(self) -> list[Sequence]:
        """Sequences that have waited and may be scheduled from now on, in order of arrival. O(1) while nothing
        changes."""
        if not self.waiting or not (self._may_admit or self._clock() >= self._impatient_at_s):
            return []
        self._may_admit = False
        admitted = [
            sequence for sequence in self.waiting.values() if sequence.adapter and self._admit(sequence.adapter)
        ]
        for sequence in admitted:
            del self.waiting[sequence.key]
        if self._clock() >= self._impatient_at_s:
            self._settle_closing()
            self._impatient_at_s = self._clock() + PATIENCE_S
        return admitted

    def _admit(self, adapter: Adapter) -> bool:
        """Count one more sequence of adapter as entered, if there is a slot for it."""
        if adapter.is_closing or (adapter.slot < 0 and not self._give_slot(adapter)):
            return False
        if adapter.weights is None:
            self._read_again(adapter)
            return False
        adapter.used_at = next(self._events)
        adapter.num_entered += 1
        self.num_entered += 1
        return True

    def _read_again(self, adapter: Adapter) -> None:
        if not adapter.is_reading:
            adapter.is_reading = True
            self._bound_memory()
            self.wanted.append(adapter)

    # ---- slots

    def _give_slot(self, adapter: Adapter) -> bool:
        slot = self._free_slot()
        if slot is None:
            return False
        adapter.slot, adapter.slot_since = slot, next(self._events)
        self._resident[slot] = adapter
        self.changes[slot] = adapter.weights
        self.num_swaps += 1
        return True

    def _free_slot(self) -> int | None:
        """An empty slot, or that of the least recently used adapter without sequences inside."""
        for slot, resident in enumerate(self._resident):
            if resident is None:
                return slot
        idle = [one for one in self._resident if one is not None and not one.num_entered and not one.is_reading]
        if not idle:
            return None
        oldest = min(idle, key=lambda resident: resident.used_at)
        slot = oldest.slot
        self._take_slot(oldest)
        return slot

    def _take_slot(self, adapter: Adapter) -> None:
        if adapter.slot >= 0:
            self.changes[adapter.slot] = None
            self._resident[adapter.slot] = None
            adapter.slot = -1
        adapter.is_closing = adapter.is_reading = False

    def _settle_closing(self) -> None:
        """One closing slot for each adapter that waits without one, at most one more each time; else none."""
        without = {one.adapter.id for one in self.waiting.values() if one.adapter is not None and one.adapter.slot < 0}
        residents = [resident for resident in self._resident if resident is not None]
        if not without:
            for resident in residents:
                self._may_admit |= resident.is_closing
                resident.is_closing = False
        elif sum(resident.is_closing for resident in residents) < len(without):
            open_ones = [resident for resident in residents if not resident.is_closing and not resident.is_reading]
            if open_ones:
                min(open_ones, key=lambda resident: resident.slot_since).is_closing = True

    def take_changes(self) -> list[tuple[int, Any]]:
        """Changes of the device's slots before the next step: (slot, weights, or None to empty it)."""
        changes, self.changes = self.changes, {}
        return list(changes.items())

    def check_integrity(self, entered: Iterable[Sequence]) -> None:
        """Compare the counts with the sequences that have entered. Raises IntegrityError."""
        inside = Counter(sequence.adapter.id for sequence in entered if sequence.adapter is not None)
        outside = Counter(sequence.adapter.id for sequence in self.waiting.values() if sequence.adapter is not None)
        for adapter in self._known.values():
            counts = (adapter.num_entered, adapter.num_sequences)
            if counts != (inside[adapter.id], inside[adapter.id] + outside[adapter.id]):
                raise IntegrityError(f"adapter {adapter.name!r} counts {counts} sequences (entered, all)")
            if adapter.slot >= 0 and self._resident[adapter.slot] is not adapter:
                raise IntegrityError(f"adapter {adapter.name!r} is not in its slot {adapter.slot}")
        if self.num_in_memory > self._max_in_memory:
            raise IntegrityError(
                f"{self.num_in_memory} adapters are in host memory, at most {self._max_in_memory} may be"
            )
        unknown = [adapter for adapter in self._resident if adapter and self._known.get(adapter.id) is not adapter]
        if unknown or sum(inside.values()) != self.num_entered:
            raise IntegrityError(f"LoRA slots leaked: {len(unknown)} hold adapters that are no longer known")
