"""Where the live feed's figures come from: the flight recorders' files of the engines and the notes of the workers,
which any worker reads without asking another process."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
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

    def engines_of(self, model_index: int) -> Sequence[int]:
        """The indices of a model's engines."""

    def flight(self, engine_index: int) -> FlightLog | None:
        """The file of an engine, its newest one; None where there is none."""

    def workers(self) -> list[WorkerNotes]:
        """The notes of other workers, and of this one."""


class OwnSources:
    """For a server of one process, whose engines record nothing."""

    started_s: float | None = None

    def __init__(self, own: OwnNotes) -> None:
        self.own = own

    def engines_of(self, model_index: int) -> Sequence[int]:
        return (model_index,)

    def flight(self, engine_index: int) -> FlightLog | None:
        return None

    def workers(self) -> list[WorkerNotes]:
        return []


class FolderSources:
    """The runtime folder of a server of num_workers workers, and of num_replicas engines a model."""

    def __init__(self, folder: RuntimeFolder, own: OwnNotes, num_workers: int, num_replicas: int = 1) -> None:
        self.own = own
        self.started_s: float | None = folder.started_s
        self._folder = folder
        self._num_workers = num_workers
        self._num_replicas = num_replicas
        self._logs: dict[int, FlightLog] = {}

    def engines_of(self, model_index: int) -> Sequence[int]:
        return range(model_index * self._num_replicas, (model_index + 1) * self._num_replicas)

    def flight(self, engine_index: int) -> FlightLog | None:
        """Opened again once the engine was started again."""
        path = self._folder.flight_file(engine_index)
        with contextlib.suppress(OSError, ConfigError):
            log = self._logs.get(engine_index)
            if log is None or log.inode != path.stat().st_ino:
                log = self._logs[engine_index] = FlightLog(path)
            return log
        self._logs.pop(engine_index, None)
        return None

    def workers(self) -> list[WorkerNotes]:
        return read_notes(self._folder, self._num_workers)
