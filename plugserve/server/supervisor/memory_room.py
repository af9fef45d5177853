"""Keeps the loaded models within a budget of memory: the least recently used ones make room for another."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from plugserve.core.errors import EngineError
from plugserve.server.supervisor.model_size import shown_bytes
from plugserve.server.supervisor.process_slots import EngineSlot, ModelState

log = logging.getLogger(__name__)

_HOLD_S: Final = 30.0  # at most, in which requests for a model that is to make room wait for those that run
_PAUSE_S: Final = 0.2  # between two tries
_EVICTABLE: Final = (ModelState.UP, ModelState.DEAD)


class NoRoomError(EngineError):
    """A model doesn't fit beside those that can't be unloaded now."""


class MemoryRoom:
    """evict unloads a model within a number of seconds; False if its requests did not end in that time."""

    def __init__(
        self, budget_bytes: int, slots: Sequence[EngineSlot], evict: Callable[[EngineSlot, float], Awaitable[bool]]
    ) -> None:
        self.budget_bytes = budget_bytes
        self._slots = slots
        self._evict = evict
        self._turn = asyncio.Lock()

    @property
    def used_bytes(self) -> int:
        """What loaded models take, and those that load are about to take."""
        return sum(slot.size_bytes for slot in self._slots)

    @property
    def _excess_bytes(self) -> int:
        return self.used_bytes - self.budget_bytes

    async def reserve(self, slot: EngineSlot, size_bytes: int, limit_s: float) -> None:
        """Count size_bytes for slot, after unloading what has to go; waits for limit_s at most. Raises NoRoomError."""
        fixed = [one for one in self._slots if one.entry.is_pinned and one.size_bytes and one is not slot]
        fixed_bytes = sum(one.size_bytes for one in fixed)
        if size_bytes > self.budget_bytes - fixed_bytes:
            beside = (
                f"{shown_bytes(fixed_bytes)} of it are pinned ({_names(fixed)})" if fixed else "none of it is taken"
            )
            raise NoRoomError(
                f"it takes {shown_bytes(size_bytes)}, and the models' budget is {shown_bytes(self.budget_bytes)}, "
                f"{beside}; raise --model-memory-budget, or lower the model's kv_cache_memory"
            )
        slot.counts.size_bytes = size_bytes  # before it waits: nothing else may take what it is waiting for
        if self._excess_bytes <= 0:
            return
        try:
            async with asyncio.timeout(limit_s), self._turn:
                await self._make_room(slot, time.monotonic() + limit_s)
        except BaseException as error:
            slot.counts.size_bytes = 0
            if isinstance(error, TimeoutError):
                raise self._busy(slot, size_bytes, limit_s) from None
            raise

    async def _make_room(self, slot: EngineSlot, deadline_s: float) -> None:
        while self._excess_bytes > 0:
            for victim in self._victims(slot):
                await self._evict(victim, min(_HOLD_S, deadline_s - time.monotonic()))
            if self._excess_bytes > 0:
                await asyncio.sleep(_PAUSE_S)

    def _victims(self, slot: EngineSlot) -> list[EngineSlot]:
        """The models to unload, idle ones first, then the least recently used; none whose memory is not needed."""
        candidates = sorted(
            (one for one in self._slots if one.state in _EVICTABLE and not one.entry.is_pinned and one is not slot),
            key=lambda one: (one.num_requests > 0, one.last_used_s),
        )
        chosen: list[EngineSlot] = []
        surplus_bytes = -self._excess_bytes
        for one in candidates:
            if surplus_bytes >= 0:
                break
            chosen.append(one)
            surplus_bytes += one.size_bytes
        for one in list(chosen):
            if surplus_bytes - one.size_bytes >= 0:
                chosen.remove(one)
                surplus_bytes -= one.size_bytes
        return chosen

    def _busy(self, slot: EngineSlot, size_bytes: int, limit_s: float) -> NoRoomError:
        others = [one for one in self._slots if one.size_bytes and one is not slot]
        return NoRoomError(
            f"no memory became free in {limit_s:.0f} s: it takes {shown_bytes(size_bytes)}, and the models' budget of "
            f"{shown_bytes(self.budget_bytes)} is taken by {_names(others)}; try again later"
        )

    async def trim(self, slot: EngineSlot) -> None:
        """After slot was loaded and took more than was expected: unload idle models until the rest fits."""
        for victim in self._victims(slot) if self._excess_bytes > 0 else ():
            if not victim.num_requests:
                await self._evict(victim, _HOLD_S)
        if self._excess_bytes > 0:
            log.warning(
                "models take %s, more than the budget of %s: %s",
                shown_bytes(self.used_bytes), shown_bytes(self.budget_bytes), _names(self._slots),
            )  # fmt: skip


def _names(slots: Sequence[EngineSlot]) -> str:
    shown = (f"{one.name} {shown_bytes(one.size_bytes)}, {_why(one)}" for one in slots if one.size_bytes)
    return "; ".join(shown) or "none"


def _why(slot: EngineSlot) -> str:
    if slot.entry.is_pinned:
        return "pinned"
    return f"{slot.num_requests} requests" if slot.num_requests else str(slot.state)
