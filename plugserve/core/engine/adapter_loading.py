"""Reads LoRA adapters on separate threads while the engine runs, and reports the results. Torch-free.

Reads one adapter at a time. A read that takes too long is abandoned: its thread can't be ended, but nothing waits for
it.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any, Final

from plugserve.core.engine.adapter_pool import AdapterPool
from plugserve.core.engine.switched_off import NoAdapters
from plugserve.core.errors import UserError
from plugserve.core.wire.messages import AdapterLoaded, LoadAdapter

log = logging.getLogger(__name__)

READ_LIMIT_S: Final = 60.0
MOST_ABANDONED: Final = 8


class AdapterLoader:
    """Puts what read (LoraManager.read) makes of a folder into pool. read is None where no adapters are served.

    reading are the adapters that are being read or wait for it: call finished regularly while there are any.
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
        self.reading: deque[LoadAdapter] = deque()  # the first one is being read
        self._result: Future[Any] = Future()  # of the first one
        self._started_s = 0.0
        self._abandoned: list[Thread] = []

    def submit(self, message: LoadAdapter) -> None:
        """Read an adapter; finished reports it when it is done."""
        self.reading.append(message)
        if len(self.reading) == 1:
            self._begin()

    def finished(self) -> list[AdapterLoaded]:
        """Adapters that were read or abandoned since the last call; those without an error can be used from now on."""
        done = []
        while self.reading and (self._result.done() or self._clock() - self._started_s > READ_LIMIT_S):
            message = self.reading.popleft()
            done.append(AdapterLoaded(id=message.id, error=self._take(message)))
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
            arguments = (self._read, Path(self.reading[0].path), self._result)
            self._thread = Thread(target=_read_into, args=arguments, name="adapter", daemon=True)
            self._thread.start()

    def _take(self, message: LoadAdapter) -> str:
        """Empty for a good adapter, else why it can't be used."""
        if not self._result.done():
            self._abandoned.append(self._thread)
            log.error("reading an adapter was abandoned name=%s after_s=%.0f", message.name, READ_LIMIT_S)
            return f"it was not read in {READ_LIMIT_S:.0f} s"
        try:
            self._pool.add(message.id, message.name, self._result.result())
        except UserError as error:
            return " ".join(str(error).split())
        except BaseException as error:  # any exception of read, which ran on its own thread
            log.error("LoRA manager failed to read an adapter name=%s", message.name, exc_info=error)
            return f"the LoRA manager failed to read it: {type(error).__name__}"
        return ""


def _read_into(read: Callable[[Path], Any], path: Path, result: Future[Any]) -> None:
    try:
        result.set_result(read(path))
    except BaseException as error:
        result.set_exception(error)
