"""Where the live feed's figures come from: the flight recorders' files of the engines and the notes of the workers,
which any worker reads without asking another process."""

from __future__ import annotations

import contextlib
from typing import Protocol

from plugserve.core.errors import ConfigError
from plugserve.core.flight.flight_log import FlightLog
from plugserve.core.wire.runtime_folder import RuntimeFolder
from plugserve.server.operations.worker_notes import OwnNotes, WorkerNotes, read_notes


class LiveSources(Protocol):
    """The methods read files, and are called in a thread; own is for the event loop."""

    own: OwnNotes

    @property
    def started_s(self) -> float | None:
        """When the server started, in seconds since 1970; None where that is not known."""

    def flight(self, model_index: int) -> FlightLog | None:
        """The file of a model's engine, its newest one; None where there is none."""

    def workers(self) -> list[WorkerNotes]:
        """The notes of other workers, and of this one."""


class OwnSources:
    """For a server of one process, whose engines record nothing."""

    started_s: float | None = None

    def __init__(self, own: OwnNotes) -> None:
        self.own = own

    def flight(self, model_index: int) -> FlightLog | None:
        return None

    def workers(self) -> list[WorkerNotes]:
        return []


class FolderSources:
    """The runtime folder of a server of num_workers workers."""

    def __init__(self, folder: RuntimeFolder, own: OwnNotes, num_workers: int) -> None:
        self.own = own
        self.started_s: float | None = folder.started_s
        self._folder = folder
        self._num_workers = num_workers
        self._logs: dict[int, FlightLog] = {}

    def flight(self, model_index: int) -> FlightLog | None:
        """Opened again once the engine was started again."""
        path = self._folder.flight_file(model_index)
        with contextlib.suppress(OSError, ConfigError):
            log = self._logs.get(model_index)
            if log is None or log.inode != path.stat().st_ino:
                log = self._logs[model_index] = FlightLog(path)
            return log
        self._logs.pop(model_index, None)
        return None

    def workers(self) -> list[WorkerNotes]:
        return read_notes(self._folder, self._num_workers)
