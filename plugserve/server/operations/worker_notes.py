"""What each server worker tells the others of itself, for the live feed: requests in flight, plugins' calls, and the
answers that clients read slowly. A file a worker, in the runtime folder, replaced twice a second."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

import msgspec

from plugserve.core.wire.runtime_folder import RuntimeFolder

_MOST_UNREAD: Final = 256
_LEAST_UNREAD_S: Final = 0.1


class WorkerNotes(msgspec.Struct, frozen=True, kw_only=True):
    """plugin_* are keyed by "plugin hook". unread_s: by request id, for how long its answer waited to be read."""

    index: int
    pid: int
    requests: int = 0
    plugin_calls: dict[str, int] = {}
    plugin_seconds: dict[str, float] = {}
    plugin_errors: dict[str, int] = {}
    unread_s: dict[str, float] = {}


class CountedCalls(Protocol):
    """The counts of a PluginGuard."""

    @property
    def calls(self) -> Mapping[tuple[str, str], int]: ...

    @property
    def seconds(self) -> Mapping[tuple[str, str], float]: ...

    @property
    def errors(self) -> Mapping[tuple[str, str], int]: ...


class OwnNotes:
    """This worker's notes. path is their file, None where no other process reads them."""

    def __init__(self, index: int = 0, path: Path | None = None) -> None:
        self._index = index
        self._path = path
        self._unread: deque[tuple[str, float]] = deque(maxlen=_MOST_UNREAD)

    def note_unread(self, request_id: str, seconds: float) -> None:
        """An answer waited for its client that long, all in all."""
        if seconds >= _LEAST_UNREAD_S:
            self._unread.append((request_id, round(seconds, 3)))

    def now(self, num_requests: int, hooks: CountedCalls) -> WorkerNotes:
        return WorkerNotes(
            index=self._index,
            pid=os.getpid(),
            requests=num_requests,
            plugin_calls={" ".join(key): count for key, count in hooks.calls.items()},
            plugin_seconds={" ".join(key): round(seconds, 6) for key, seconds in hooks.seconds.items()},
            plugin_errors={" ".join(key): count for key, count in hooks.errors.items()},
            unread_s=dict(self._unread),
        )

    def write(self, notes: WorkerNotes) -> None:
        """Replace the file. A full disk leaves the old one, which soon counts as missing."""
        if self._path is not None:
            new = self._path.with_suffix(".new")
            with contextlib.suppress(OSError):
                new.write_bytes(msgspec.json.encode(notes))
                new.replace(self._path)


def read_notes(folder: RuntimeFolder, num_workers: int, *, oldest_s: float = 10.0) -> list[WorkerNotes]:
    """Of the workers that wrote some lately."""
    found = []
    for index in range(num_workers):
        path = folder.worker_notes(index)
        with contextlib.suppress(OSError, msgspec.DecodeError):
            if time.time() - path.stat().st_mtime < oldest_s:
                found.append(msgspec.json.decode(path.read_bytes(), type=WorkerNotes))
    return found
