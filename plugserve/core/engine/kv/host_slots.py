"""Slots for KV blocks in host memory, and the queue of copies between them and the device. Numbers only, no contents.

A slot is room for one block. Copies are queued here and sent with the next step (StepInput.copy_out, copy_in), whose
runner carries them out before it computes: first all copies out, then all copies in, each in the order of the queue.
So a block may be allocated anew as soon as its copy out is queued, and a slot may be freed as soon as nothing is to be
copied in from it, queued copies included (free waits for that).
"""

from __future__ import annotations

from collections.abc import Iterable

from plugserve.core.engine.kv.block_pool import IntegrityError


class HostSlots:
    """num_slots slots, numbered from 0. Memory is touched as slots are first used: allocate prefers used ones."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.num_copied_out = 0
        self.num_copied_in = 0
        self._num_touched = 0
        self._free: list[int] = []
        self._held: set[int] = set()  # their copy in is queued, or will be before the next step leaves
        self._freed_while_held: list[int] = []
        self._out: list[tuple[int, int]] = []
        self._in: list[tuple[int, int]] = []

    @property
    def num_used(self) -> int:
        return self._num_touched - len(self._free)

    @property
    def num_free(self) -> int:
        """Slots that allocate can give now."""
        return self.num_slots - self._num_touched + len(self._free)

    def allocate(self) -> int | None:
        """An unused slot, or None."""
        if self._free:
            return self._free.pop()
        if self._num_touched == self.num_slots:
            return None
        self._num_touched += 1
        return self._num_touched - 1

    def free(self, slot: int) -> None:
        """Free a slot. It can be allocated again once the copies in from it were sent."""
        (self._freed_while_held if slot in self._held else self._free).append(slot)

    def hold(self, slots: Iterable[int]) -> None:
        """Reserve slots that will be copied in with the next step: until then they are not allocated again."""
        self._held.update(slots)

    def is_held(self, slot: int) -> bool:
        return slot in self._held

    def copy_out(self, block: int, slot: int) -> None:
        """Save what all launched steps have left in block."""
        self._out.append((block, slot))
        self.num_copied_out += 1

    def copy_in(self, slot: int, block: int) -> None:
        """Fill block from slot, before the next step computes."""
        self._held.add(slot)
        self._in.append((slot, block))
        self.num_copied_in += 1

    def take_copies(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """The copies of the step that is launched now: (block, slot) pairs out, then (slot, block) pairs in."""
        if self._held:
            self._free += self._freed_while_held
            self._held.clear()
            self._freed_while_held = []
        if not self._out and not self._in:
            return [], []
        taken = self._out, self._in
        self._out, self._in = [], []
        return taken

    def check_integrity(self, owned: Iterable[int]) -> None:
        """Raise IntegrityError unless every slot that was ever used is either owned, once, or free."""
        seen = sorted([*owned, *self._free, *self._freed_while_held])
        if seen != list(range(self._num_touched)):
            raise IntegrityError(f"host slots don't add up: {self._num_touched} were used, {len(seen)} are known")
