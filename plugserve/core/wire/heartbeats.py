"""Heartbeats in shared memory: one slot for each engine and server worker, which its process writes, and which the
supervisor and every worker read.

A file of the runtime folder, mapped by all processes. A slot holds ten doubles, each stored and loaded whole; times
are time.monotonic(), which all processes of a host share. A beat costs four stores and no system call but the clock.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

NEVER_S: Final = float("inf")

STARTING: Final = 1
SERVING: Final = 2
COMPUTING: Final = 3
LEAVING: Final = 4
PHASES: Final = {0: "starting", STARTING: "starting", SERVING: "serving", COMPUTING: "computing", LEAVING: "leaving"}

WELL: Final = 0
SILENT: Final = 1
STOPPED: Final = 2
CAUSES: Final = {WELL: "well", SILENT: "no heartbeat", STOPPED: "stopped by a signal"}

_NUM_FIELDS: Final = 10
_PID, _PHASE, _BEAT_S, _LATE_S, _REPLACE_S, _CAUSE, _NUM_HANGS, _PROGRESS, _RANK, _RANK_PID = range(_NUM_FIELDS)
_NUM_ENGINES, _NUM_WORKERS = range(2)  # of slot 0, the file's head
_SILENCE_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class HangLimits:
    """Limits of the time without a heartbeat: silent_s until it counts as unhealthy while it serves, replace_s
    until it is replaced (NEVER_S: it isn't), start_s for its whole start."""

    silent_s: float = _SILENCE_S
    replace_s: float = 60.0
    start_s: float = 1800.0

    @classmethod
    def of(cls, hang_timeout_s: float, start_timeout_s: float) -> HangLimits:
        """From --engine-hang-timeout and --engine-start-timeout, both 0 for no limit."""
        replace_s = hang_timeout_s or NEVER_S
        return cls(min(_SILENCE_S, replace_s), replace_s, start_timeout_s or NEVER_S)


@dataclass(frozen=True, slots=True)
class Vitals:
    """A snapshot of one process's slot. cause is the supervisor's finding, WELL if there is none; pid is 0 before the
    process has started; progress is the share of the model that a starting engine has loaded; hung_rank is
    another rank of an engine's model that hangs, 0 for none."""

    pid: int
    phase: int
    age_s: float
    late_s: float
    replace_s: float
    cause: int
    num_hangs: int
    progress: float = 0.0
    hung_rank: int = 0
    hung_rank_pid: int = 0

    @property
    def is_late(self) -> bool:
        """Its last heartbeat is older than its phase allows."""
        return self.age_s > self.late_s

    @property
    def is_unhealthy(self) -> bool:
        """Late, found stopped by the supervisor, or waiting for a rank that hangs."""
        return self.cause != WELL or self.is_late or self.hung_rank > 0

    def __str__(self) -> str:
        own = f"{CAUSES[self.cause or SILENT]} for {self.age_s:.1f} s while {PHASES.get(self.phase, '?')}"
        if not self.hung_rank:
            return own
        rank = f"rank {self.hung_rank} (pid {self.hung_rank_pid}) hangs"
        return f"{own}; {rank}" if self.cause != WELL or self.is_late else rank


class Pulse:
    """Writes one process's slot. Used from the thread that is watched: the engine's loop or the worker's event loop."""

    def __init__(
        self, fields: memoryview[float], limits: HangLimits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fields = fields
        self._limits = limits
        self._clock = clock

    @classmethod
    def unwatched(cls) -> Pulse:
        """A heartbeat that no other process reads, for engines without a supervisor."""
        return cls(memoryview(bytearray(8 * _NUM_FIELDS)).cast("d"), HangLimits())

    def begin(self) -> None:
        """The process exists and can dump its stacks; it loads, compiles and warms up until its first beat."""
        self._write(STARTING, self._limits.start_s, self._limits.start_s)
        self._fields[_PID] = os.getpid()

    def beat(self) -> None:
        """Record that the loop runs."""
        self._write(SERVING, self._limits.silent_s, self._limits.replace_s)

    def compute(self, expected_s: float) -> None:
        """The loop waits for a step of the model, which may take expected_s."""
        limits = self._limits
        late_s = max(limits.silent_s, min(expected_s, limits.replace_s))
        self._write(COMPUTING, late_s, limits.replace_s + expected_s)

    def note_progress(self, share: float) -> None:
        """The share of the model that is loaded, from 0 to 1. Any thread may call it."""
        self._fields[_PROGRESS] = share

    def note_rank(self, rank: int, pid: int) -> None:
        """Another rank of this engine's model hangs; rank 0: none does any more. Any thread may call it."""
        self._fields[_RANK_PID] = pid
        self._fields[_RANK] = rank

    @property
    def is_late(self) -> bool:
        """The last heartbeat is older than its phase allows."""
        return self._clock() - self._fields[_BEAT_S] > self._fields[_LATE_S]

    def leave(self) -> None:
        """The process is shutting down; the supervisor has a separate limit for that."""
        self._write(LEAVING, NEVER_S, NEVER_S)

    def _write(self, phase: int, late_s: float, replace_s: float) -> None:
        fields = self._fields
        fields[_BEAT_S] = self._clock()  # before the limits: a reader in between sees a fresh beat
        fields[_PHASE] = phase
        fields[_LATE_S] = late_s
        fields[_REPLACE_S] = replace_s


class HeartbeatBoard:
    """The mapped file: slots of num_engines engines, then of num_workers workers."""

    def __init__(self, path: Path) -> None:
        """Map a file that create has made."""
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._fields = memoryview(self._map).cast("d")
        self.num_engines = int(self._fields[_NUM_ENGINES])
        self.num_workers = int(self._fields[_NUM_WORKERS])

    @classmethod
    def create(cls, path: Path, num_engines: int, num_workers: int) -> HeartbeatBoard:
        """A new file, written whole: touching a page that a full disk has no room for would kill the process."""
        path.write_bytes(bytes(8 * _NUM_FIELDS * (1 + num_engines + num_workers)))
        board = cls(path)
        board._fields[_NUM_ENGINES], board._fields[_NUM_WORKERS] = num_engines, num_workers
        board.num_engines, board.num_workers = num_engines, num_workers
        for slot in range(1, 1 + num_engines + num_workers):
            board.reset(slot)
        return board

    def engine_slot(self, index: int) -> int:
        return 1 + index

    def worker_slot(self, index: int) -> int:
        return 1 + self.num_engines + index

    def pulse(self, slot: int, limits: HangLimits) -> Pulse:
        return Pulse(self._of(slot), limits)

    def engine(self, index: int) -> Vitals:
        return self.read(self.engine_slot(index))

    def worker(self, index: int) -> Vitals:
        return self.read(self.worker_slot(index))

    def read(self, slot: int) -> Vitals:
        """Limits first, beat last: a process that writes meanwhile looks younger than it is, never older."""
        fields = self._of(slot)
        late_s, replace_s, phase = fields[_LATE_S], fields[_REPLACE_S], int(fields[_PHASE])
        age_s = max(0.0, time.monotonic() - fields[_BEAT_S])
        pid, cause, num_hangs = int(fields[_PID]), int(fields[_CAUSE]), int(fields[_NUM_HANGS])
        rank, rank_pid = int(fields[_RANK]), int(fields[_RANK_PID])
        return Vitals(pid, phase, age_s, late_s, replace_s, cause, num_hangs, fields[_PROGRESS], rank, rank_pid)

    def reset(self, slot: int) -> None:
        """Before a process is started: what an earlier process wrote is erased."""
        fields = self._of(slot)
        fields[_BEAT_S] = time.monotonic()
        fields[_PID] = 0.0
        fields[_PHASE] = fields[_PROGRESS] = fields[_RANK] = 0.0
        fields[_LATE_S] = fields[_REPLACE_S] = NEVER_S
        fields[_CAUSE] = WELL

    def note_cause(self, slot: int, cause: int) -> None:
        """The supervisor's finding. Each change from WELL to something else counts as a hang."""
        fields = self._of(slot)
        if cause != WELL and fields[_CAUSE] == WELL:
            fields[_NUM_HANGS] += 1
        fields[_CAUSE] = cause

    def _of(self, slot: int) -> memoryview[float]:
        return self._fields[slot * _NUM_FIELDS : (slot + 1) * _NUM_FIELDS]
