"""Watches the heartbeats of engines and workers, logs the stack of a process that hangs, and kills it after a limit.

The supervisor restarts a killed process like one that died. /health, /ready and /metrics read the findings from the
heartbeat board, which every worker maps.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from plugserve.core.wire.heartbeats import NEVER_S, SILENT, STARTING, STOPPED, WELL, HangLimits, HeartbeatBoard, Vitals
from plugserve.core.wire.messages import StartFailed
from plugserve.core.wire.stack_dump import DUMP_SIGNAL, parse_stacks
from plugserve.server.supervisor.hung_stack import HungStack, PluginFiles, find_hang

log = logging.getLogger(__name__)

_PERIOD_S: Final = 0.5
_STOPPED_S: Final = 1.0
_DUMP_S: Final = 0.3  # for the signal to arrive and the file to be written
_RECHECK_S: Final = 5.0  # between two stack dumps of a process that compiles


class _Process(Protocol):
    @property
    def pid(self) -> int: ...

    def kill(self) -> None: ...


class _Slot(Protocol):
    """The part of EngineSlot and WorkerSlot that the watch uses."""

    child: Any
    failure: StartFailed | None


@dataclass(slots=True)
class Watched:
    """One engine or worker slot: its current process, and since when that hangs."""

    title: str
    board_slot: int
    slot: _Slot
    stack_file: Path
    pid: int = 0
    stopped_since_s: float | None = None
    cause: int = WELL
    hung_since_s: float = 0.0
    compiles_until_s: float = 0.0
    stack: HungStack | None = None
    is_ended: bool = False  # the watch has killed the process, which has not exited yet

    def follow(self, pid: int) -> None:
        """Reset the findings when a new process runs in the slot."""
        if pid != self.pid:
            self.pid, self.stopped_since_s, self.cause, self.stack = pid, None, WELL, None
            self.compiles_until_s, self.is_ended = 0.0, False


class HangWatch:
    """on_change is awaited after each round in which a process started or stopped hanging."""

    def __init__(
        self,
        board: HeartbeatBoard,
        limits: HangLimits,
        files: PluginFiles,
        on_change: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._board = board
        self._limits = limits
        self._by_slot: dict[int, Watched] = {}
        self._files = files
        self._on_change = on_change
        self._looked_s = time.monotonic()

    def add(self, one: Watched) -> None:
        """Watch one more; it replaces another one in the same slot of the board."""
        self._by_slot[one.board_slot] = one

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_PERIOD_S)
            await self.look()

    async def look(self) -> None:
        """One round over all processes."""
        now_s = time.monotonic()
        was_suspended = now_s - self._looked_s > 4 * _PERIOD_S  # every process may have been suspended: give it a round
        self._looked_s = now_s
        watched = list(self._by_slot.values())
        before = [one.cause for one in watched]
        for one in watched:
            child: _Process | None = one.slot.child
            one.follow(child.pid if child is not None else 0)
            if child is not None and not one.is_ended and not was_suspended:
                await self._examine(one, child)
        if self._on_change is not None and before != [one.cause for one in watched]:
            await self._on_change()

    async def _examine(self, one: Watched, child: _Process) -> None:
        vitals = self._board.read(one.board_slot)
        cause = await self._cause(one, vitals)
        if cause != one.cause:
            self._note(one, cause, vitals)
        if cause == WELL:
            return
        silent_s = time.monotonic() - one.hung_since_s if cause == STOPPED else vitals.age_s
        if silent_s > self._replace_s(cause, vitals):
            where = f" in plugin {one.stack.plugin!r}" if one.stack is not None and one.stack.plugin else ""
            limit = "--engine-start-timeout" if vitals.phase == STARTING else "--engine-hang-timeout"
            reason = f"it hung: {vitals}{where}; {limit} has passed"
            one.slot.failure = StartFailed(message=reason, is_user_error=False)
            log.error("%s is killed and started again: %s", one.title, reason)
            one.is_ended = True
            child.kill()

    async def _cause(self, one: Watched, vitals: Vitals) -> int:
        now_s = time.monotonic()
        if not _is_stopped(one.pid):
            one.stopped_since_s = None
        else:
            one.stopped_since_s = one.stopped_since_s or now_s
            return STOPPED if now_s - one.stopped_since_s >= _STOPPED_S else one.cause
        if not vitals.is_late:
            return WELL
        if one.cause == WELL and now_s >= one.compiles_until_s:
            one.stack = await self._dump(one, vitals)
            if one.stack is not None and one.stack.is_compiling and vitals.age_s < self._limits.start_s:
                log.info("%s compiles kernels; no heartbeat for silent_s=%.1f", one.title, vitals.age_s)
                one.compiles_until_s = now_s + _RECHECK_S
        return WELL if now_s < one.compiles_until_s else SILENT

    def _note(self, one: Watched, cause: int, vitals: Vitals) -> None:
        if cause == WELL:
            log.warning("%s responds again after %.1f s", one.title, time.monotonic() - one.hung_since_s)
            one.stack = None
        else:
            one.hung_since_s = time.monotonic()
            where = one.stack if cause == SILENT and one.stack is not None else _no_stack(cause)
            limit_s = self._replace_s(cause, vitals)
            then = "not replaced (--engine-hang-timeout 0)" if limit_s == NEVER_S else f"replaced after {limit_s:.0f} s"
            log.error("%s hangs: %s, %s; %s", one.title, replace(vitals, cause=cause), then, where)
        one.cause = cause
        self._board.note_cause(one.board_slot, cause)

    def _replace_s(self, cause: int, vitals: Vitals) -> float:
        """The limit after which the process is killed. That of a stopped process doesn't depend on its phase."""
        return self._limits.replace_s if cause == STOPPED else vitals.replace_s

    async def _dump(self, one: Watched, vitals: Vitals) -> HungStack | None:
        """The process's stacks; None if it does not react to the signal (not started yet, or blocked in a system
        call)."""
        if vitals.pid != one.pid:
            return None
        with contextlib.suppress(OSError):
            os.truncate(one.stack_file, 0)
            os.kill(one.pid, DUMP_SIGNAL)
            await asyncio.sleep(_DUMP_S)
            threads = parse_stacks(one.stack_file.read_text(errors="replace"))
            return find_hang(threads, self._files) if threads else None
        return None


def _no_stack(cause: int) -> str:
    if cause == STOPPED:
        return "the process is stopped (SIGSTOP or a debugger); kill -CONT resumes it"
    return "it wrote no stack dump"


def _is_stopped(pid: int) -> bool:
    """True if /proc shows the process as stopped. Without /proc, a stopped process is found by its missing
    heartbeat."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read(512).rpartition(b")")[2].split()[0] in (b"T", b"t")
    except (OSError, IndexError):
        return False
