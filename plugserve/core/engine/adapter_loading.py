"""Reads LoRA adapters on a thread of its own while the engine goes on, and reports the outcome. Torch-free."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from plugserve.core.engine.adapter_pool import AdapterPool
from plugserve.core.engine.switched_off import NoAdapters
from plugserve.core.errors import UserError
from plugserve.core.plugin_system.failure_policy import is_shutdown
from plugserve.core.wire.messages import AdapterLoaded, LoadAdapter

log = logging.getLogger(__name__)


class AdapterLoader:
    """Puts what read (LoraManager.read) makes of a folder into pool. read is None where no adapters are served.

    reading are the adapters that are being read: call finished now and then while there are any.
    """

    def __init__(self, read: Callable[[Path], Any] | None, pool: AdapterPool | NoAdapters) -> None:
        self._read = read
        self._pool = pool
        self.reading: list[tuple[LoadAdapter, Future[Any]]] = []
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapter")

    def submit(self, message: LoadAdapter) -> None:
        """Read an adapter; finished reports it when it is done."""
        read: Callable[[Path], Any] = self._refuse if self._read is None else self._read
        self.reading.append((message, self._threads.submit(read, Path(message.path))))

    @staticmethod
    def _refuse(path: Path) -> Any:
        raise UserError("this engine serves no LoRA adapters")

    def finished(self) -> list[AdapterLoaded]:
        """What has been read since the last call; good ones can be used from now on."""
        done = [entry for entry in self.reading if entry[1].done()]
        self.reading = [entry for entry in self.reading if entry not in done]
        return [AdapterLoaded(id=message.id, error=self._take(message, future)) for message, future in done]

    def _take(self, message: LoadAdapter, future: Future[Any]) -> str:
        """Empty for a good adapter, else why it can't be used."""
        try:
            self._pool.add(message.id, message.name, future.result())
        except UserError as error:
            return " ".join(str(error).split())
        except BaseException as error:
            if is_shutdown(error):
                raise
            log.exception("LoRA manager failed to read an adapter name=%s", message.name)
            return f"the LoRA manager failed to read it: {type(error).__name__}"
        return ""
