"""The folder that a running server's processes share: the model table, socket addresses, heartbeats, metric files.

Made by the supervisor, readable by its user alone, and removed by it at the end, or by the next server of the same user
where a supervisor was killed. Holds no keys: settings reach the children through handed_settings.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from plugserve.core.errors import ConfigError
from plugserve.core.model_files.model_source import ModelSource
from plugserve.core.settings.model_entries import ModelEntry
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.heartbeats import HeartbeatBoard
from plugserve.core.wire.load_board import LoadBoard

logger = logging.getLogger(__name__)

_LEAST_FREE_BYTES = 8 << 20  # metric files grow, and a mapped one that can't ends its process
_PREFIX = "plugserve-"
_SHORT_PLACE = "/tmp"
_LOCK_NAME = "owner.lock"
NUM_SPARE_MODELS: Final = 16  # that requests may add with --allow-model-download
_LONGEST_SOCKET_PATH = 90  # the system's limit is 103 (macOS) or 107 bytes, less our file names


class RuntimeFolder:
    """Models have an index, and so have engines: with --data-parallel-size N, those of model I are I * N to
    I * N + N - 1.

    path holds models.json (the table), source-N.json (the files of model N, once found), the ZMQ sockets, metrics/
    (the workers' metric files) and owner.lock, which is locked for as long as the supervisor lives."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @classmethod
    def create(cls, settings: Settings, entries: Iterable[ModelEntry]) -> RuntimeFolder:
        """A new folder of mode 0700. In /tmp where the system's own temporary folder has too long a name."""
        try:
            remove_leftovers()
            path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            if len(str(path)) > _LONGEST_SOCKET_PATH - len("/engine-00-000.ipc"):
                path.rmdir()
                path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_SHORT_PLACE))
        except OSError as error:
            raise ConfigError(f"no folder for temporary files can be made ({error}); set TMPDIR to one") from None
        folder = cls(path)
        try:
            folder._fill(settings, entries)
        except OSError as error:
            folder.remove()
            raise ConfigError(
                f"the runtime folder {path} can't be written: {error.strerror}; free space there, or set TMPDIR to "
                "another folder"
            ) from None
        return folder

    def _fill(self, settings: Settings, entries: Iterable[ModelEntry]) -> None:
        space = os.statvfs(self.path)
        if space.f_bavail * space.f_frsize < _LEAST_FREE_BYTES:
            raise OSError(errno.ENOSPC, f"less than {_LEAST_FREE_BYTES >> 20} MiB are free")
        self._lock = _make_lock(self.path)
        self.metrics.mkdir(mode=0o700)
        _write_private(self.path / "trace.key", secrets.token_bytes(16))
        models = [asdict(entry) for entry in entries]
        _write_private(self.path / "models.json", json.dumps(models).encode())
        num_spare = NUM_SPARE_MODELS if settings.allow_model_download else 0
        num_engines = (len(models) + num_spare) * settings.data_parallel_size
        HeartbeatBoard.create(self.heartbeats, num_engines, settings.api_workers)
        if settings.data_parallel_size > 1:
            LoadBoard.create(self.loads, num_engines, settings.api_workers)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def metrics(self) -> Path:
        return self.path / "metrics"

    @property
    def heartbeats(self) -> Path:
        """The shared memory of core.wire.heartbeats."""
        return self.path / "heartbeats"

    @property
    def loads(self) -> Path:
        """The shared memory of core.wire.load_board, with several engines a model."""
        return self.path / "loads"

    def stack_file(self, name: str) -> Path:
        """The file for the stack dumps of a process (engine-0, worker-1)."""
        return self.path / f"stack-{name}"

    def flight_file(self, engine_index: int) -> Path:
        """The flight recorder's file of an engine (core/flight)."""
        return self.path / f"flight-{engine_index}"

    def worker_notes(self, index: int) -> Path:
        """What a server worker tells the others of itself (server/operations/worker_notes.py)."""
        return self.path / f"notes-{index}"

    @property
    def started_s(self) -> float:
        """When the server started, in seconds since 1970."""
        return (self.path / "models.json").stat().st_mtime

    @property
    def control_address(self) -> str:
        """The address on which the supervisor listens to its children."""
        return f"ipc://{self.path}/control.ipc"

    def engine_address(self, engine_index: int, generation: int) -> str:
        """The address on which the generation-th start of an engine listens to workers."""
        return f"ipc://{self.path}/engine-{engine_index}-{generation}.ipc"

    def read_trace_key(self) -> bytes:
        """The key of hashes in a recorded trace, which makes them comparable within this run only."""
        return (self.path / "trace.key").read_bytes()

    def read_entries(self) -> list[ModelEntry]:
        """The model table at the server's start; a model's place in it is its index."""
        return [as_entry(one) for one in json.loads((self.path / "models.json").read_text())]

    def write_source(self, index: int, source: ModelSource) -> None:
        """Record the files that the supervisor found, so that other processes don't look for them again."""
        path = self._source_file(index)
        unnamed = path.with_suffix(".new")
        unnamed.unlink(missing_ok=True)
        _write_private(unnamed, json.dumps(asdict(source), default=str).encode())
        unnamed.replace(path)

    def read_source(self, index: int) -> ModelSource:
        """The files of the model at index, which have been found."""
        return as_source(json.loads(self._source_file(index).read_text()))

    def tokenizer_file(self, worker_index: int, model_index: int) -> Path:
        """A model's tokenizer.json, as a worker's process that holds the tokenizer writes it."""
        return self.path / f"tokenizer-{worker_index}-{model_index}.json"

    def _source_file(self, index: int) -> Path:
        return self.path / f"source-{index}.json"


def remove_leftovers() -> int:
    """Remove this user's folders of supervisors that were killed; returns how many."""
    num_removed = 0
    for place in {Path(tempfile.gettempdir()), Path(_SHORT_PLACE)}:
        for lock in place.glob(f"{_PREFIX}*/{_LOCK_NAME}"):
            with contextlib.suppress(OSError):
                num_removed += _remove_if_left(lock)
    if num_removed:
        logger.info("removed runtime folders of servers that were killed: %d", num_removed)
    return num_removed


def _remove_if_left(lock: Path) -> bool:
    folder = lock.parent
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        return False
    descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where the supervisor lives
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)
    return not folder.exists()


def _make_lock(path: Path) -> int:
    """A descriptor whose lock ends with this process. The file gets its name once it is locked, so that no other
    server ever finds it unlocked."""
    unnamed = path / "lock"
    descriptor = os.open(unnamed, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    unnamed.rename(path / _LOCK_NAME)
    return descriptor


def _write_private(path: Path, data: bytes) -> None:
    with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


def as_entry(one: dict[str, Any]) -> ModelEntry:
    """A model entry from its JSON object."""
    return ModelEntry(**one | {"names": tuple(one["names"]), "aliases": tuple(one["aliases"])})


def as_source(one: dict[str, Any]) -> ModelSource:
    """A model source from its JSON object."""
    tokenizer_path = one["tokenizer_path"]
    return ModelSource(
        **one
        | {
            "aliases": tuple(one["aliases"]),
            "path": Path(one["path"]),
            "tokenizer_path": Path(tokenizer_path) if tokenizer_path else None,
        }
    )
