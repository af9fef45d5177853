"""Reads LoRA adapters on separate threads while the engine runs, and reports the results. Torch-free.

Reads one adapter at a time. A read that takes too long is abandoned: its thread can't be ended, but nothing waits for
it. Adapters that were dropped from host memory are read again, if their folder is still the same: cached prefixes were
computed with what it held before.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any, Final

from plugserve.core.engine.adapter_pool import Adapter, AdapterPool
from plugserve.core.engine.switched_off import NoAdapters
from plugserve.core.errors import UserError
from plugserve.core.wire.messages import LoadAdapter

log = logging.getLogger(__name__)

READ_LIMIT_S: Final = 60.0
MOST_ABANDONED: Final = 8

FolderState = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class AdapterRead:
    """One reading of the adapter id. is_again: it is known, and its weights were dropped; error is empty for a good
    one, else one line on why it can't be used."""

    id: int
    name: str
    path: str
    is_again: bool = False
    error: str = ""


class AdapterLoader:
    """Puts what read (LoraManager.read) makes of a folder into pool. read is None where no adapters are served.

    Call finished regularly while is_busy: adapters are being read, wait for it, or were not reported yet.
    """

    def __init__(
        self,
        read: Callable[[Path], Any] | None,
        pool: AdapterPool | NoAdapters,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._pool = pool
        self._clock = clock
        self.reading: deque[AdapterRead] = deque()  # the first one is being read
        self._folders: dict[int, FolderState] = {}  # as they were when their adapters were loaded
        self._deferred: list[AdapterRead] = []  # known without being read, and not reported yet
        self._result: Future[Any] = Future()  # of the first one
        self._started_s = 0.0
        self._abandoned: list[Thread] = []

    @property
    def is_busy(self) -> bool:
        return bool(self.reading or self._deferred)

    def submit(self, message: LoadAdapter) -> None:
        """Load an adapter; finished reports it when it is read."""
        if message.is_deferred and self._read is not None:
            self._pool.add(message.id, message.name, None, message.path)
            self._deferred.append(AdapterRead(message.id, message.name, message.path))
        else:
            self._append(AdapterRead(message.id, message.name, message.path))

    def read_again(self, adapters: Iterable[Adapter]) -> None:
        """Read adapters that the pool wants in host memory again."""
        for adapter in adapters:
            self._append(AdapterRead(adapter.id, adapter.name, adapter.path, is_again=True))

    def forget(self, id: int) -> None:
        """The adapter was unloaded."""
        self._folders.pop(id, None)

    def _append(self, wanted: AdapterRead) -> None:
        self.reading.append(wanted)
        if len(self.reading) == 1:
            self._begin()

    def finished(self) -> list[AdapterRead]:
        """What was read or abandoned since the last call; adapters without an error can be used from now on."""
        done, self._deferred = self._deferred, []
        while self.reading and (self._result.done() or self._clock() - self._started_s > READ_LIMIT_S):
            read = self.reading.popleft()
            done.append(replace(read, error=self._take(read)))
            if self.reading:
                self._begin()
        return done

    def _begin(self) -> None:
        """Start on the first of reading. A daemon thread, so that one that hangs doesn't block the exit of the
        process."""
        self._result, self._started_s = Future(), self._clock()
        self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
        if self._read is None:
            self._result.set_exception(UserError("this engine serves no LoRA adapters"))
        elif len(self._abandoned) >= MOST_ABANDONED:
            self._result.set_exception(UserError(f"{MOST_ABANDONED} earlier adapters are still being read"))
        else:
            arguments = (self._read, Path(self.reading[0].path), self._known_state(self.reading[0]), self._result)
            self._thread = Thread(target=_read_into, args=arguments, name="adapter", daemon=True)
            self._thread.start()

    def _known_state(self, read: AdapterRead) -> FolderState | None:
        return self._folders.get(read.id) if read.is_again else None

    def _take(self, read: AdapterRead) -> str:
        """Empty for a good adapter, else why it can't be used."""
        if not self._result.done():
            self._abandoned.append(self._thread)
            log.error("reading an adapter was abandoned name=%s after_s=%.0f", read.name, READ_LIMIT_S)
            return f"it was not read in {READ_LIMIT_S:.0f} s"
        try:
            weights, state = self._result.result()
            if read.is_again:
                self._pool.note_read(read.id, weights)
            else:
                self._pool.add(read.id, read.name, weights, read.path)
            if self._pool.find(read.id) is not None:  # not unloaded meanwhile
                self._folders.setdefault(read.id, state)
        except UserError as error:
            return " ".join(str(error).split())
        except BaseException as error:  # any exception of read, which ran on its own thread; the guard has logged it
            return f"the LoRA manager failed to read it: {type(error).__name__}"
        return ""


def _read_into(read: Callable[[Path], Any], path: Path, known: FolderState | None, result: Future[Any]) -> None:
    """Read path into result, with its folder's state. known: the state that it must have."""
    try:
        state = _state_of(path)
        if known is not None and state != known:
            raise UserError("its files have changed since it was loaded; load it again (load_inplace)")
        result.set_result((read(path), state))
    except BaseException as error:
        result.set_exception(error)


def _state_of(folder: Path) -> FolderState:
    """Name, size and time of change of the files in folder; empty where it can't be listed, which read reports."""
    try:
        with os.scandir(folder) as entries:
            files = [(entry.name, entry.stat()) for entry in entries]
    except OSError:
        return ()
    return tuple(sorted((name, status.st_size, status.st_mtime_ns) for name, status in files))
