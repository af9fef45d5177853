"""A file of results that a killed run leaves usable: whole lines are kept, and the next run adds what is missing.

Every result is appended with one write, so a killed process loses nothing that it had written. The file is synced once
a second: a machine that loses power loses a second at most, whose requests are made again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from plugserve.core.errors import UserError

_SYNC_S: Final = 1.0
_TRY_AGAIN: Final = (408, 429)


class _Response(msgspec.Struct):
    status_code: int


class Result(msgspec.Struct):
    """The part of a result's line that tells whether its request is done."""

    id: str
    custom_id: str | None = None
    response: _Response | None = None

    @property
    def is_answered(self) -> bool:
        """The request succeeded."""
        return self.response is not None and self.response.status_code < 400

    @property
    def is_final(self) -> bool:
        """The request need not be made again: it was answered, or refused for what it is."""
        if self.response is None:
            return True
        return self.response.status_code < 500 and self.response.status_code not in _TRY_AGAIN


_decoder = msgspec.json.Decoder(Result)


class ResultsFile:
    """Appends results to path, which this process alone writes until close. Raises UserError if another one does, or
    if the file can't be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._synced_s = time.monotonic()
        try:
            self._descriptor = self._open()
        except OSError as error:
            raise UserError(f"{path} can't be written: {error.strerror}") from None

    def _open(self) -> int:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise UserError(
                f"{self._path} is being written by another run; wait for it, or name another file"
            ) from None
        return descriptor

    def keep(self, is_kept: Callable[[Result], bool]) -> None:
        """Drop all results but those that is_kept wants, and what isn't a whole result: the last line of a killed
        run."""
        size, good = os.fstat(self._descriptor).st_size, []
        with open(self._path, "rb") as file:
            num_bytes = 0
            for text in file:
                result = _read(text)
                if result is not None and is_kept(result):
                    good.append((num_bytes, len(text)))
                num_bytes += len(text)
            if sum(length for _, length in good) == size:
                return
            self._rewrite(file.fileno(), good)

    def _rewrite(self, source: int, spans: list[tuple[int, int]]) -> None:
        """Replace the file by parts of it. The old file stays whole until the new one is on disk."""
        new = self._path.with_name(self._path.name + ".new")
        with open(new, "wb") as file:
            for start, length in spans:
                file.write(os.pread(source, length, start))
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._path)
        old, self._descriptor = self._descriptor, self._open()
        os.close(old)

    async def append(self, result: bytes) -> None:
        """Write one result, in a thread; also when this is cancelled meanwhile."""
        writing = asyncio.ensure_future(asyncio.to_thread(self._append, result))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await writing
            raise

    def _append(self, result: bytes) -> None:
        with self._lock:
            view = memoryview(result)
            while view:
                view = view[os.write(self._descriptor, view) :]
            if time.monotonic() - self._synced_s >= _SYNC_S:
                os.fsync(self._descriptor)
                self._synced_s = time.monotonic()

    def close(self) -> None:
        """Sync and unlock. Safe to call twice."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.fsync(descriptor)
                os.close(descriptor)


def _read(text: bytes) -> Result | None:
    """None for what isn't a whole line with a result."""
    if not text.endswith(b"\n"):
        return None
    try:
        return _decoder.decode(text)
    except msgspec.DecodeError:
        return None
