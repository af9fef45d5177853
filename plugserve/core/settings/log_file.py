"""A log file that all processes of a server append to, and that is rotated by its size.

Each line is one write at the file's end, so lines of several processes don't mix. The process whose line fills the file
renames it to FILE.1 (the older ones to FILE.2 and so on) under a lock; the others notice that FILE is another file now,
as they do after logrotate has moved it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plugserve.core.errors import ConfigError

if TYPE_CHECKING:
    from plugserve.core.settings.server_settings import ServerSettings


@dataclass(frozen=True, slots=True)
class LogFile:
    """Up to count old files of about max_bytes each are kept beside path; with 0 the file grows."""

    path: Path
    max_bytes: int
    count: int

    def check(self) -> None:
        """Raises ConfigError if the file can't be written."""
        try:
            os.close(_open(self.path))
        except OSError as error:
            raise ConfigError(f"--log-file {self.path}: {error.strerror or error}") from None


def log_file_of(settings: ServerSettings) -> LogFile | None:
    """The log file that settings name, None without one."""
    if settings.log_file is None:
        return None
    return LogFile(Path(settings.log_file).expanduser().absolute(), settings.log_file_size, settings.log_file_count)


class LogFileHandler(logging.Handler):
    """Appends records to file. Raises OSError if it can't be opened."""

    def __init__(self, file: LogFile) -> None:
        super().__init__()
        self._file = file
        self._descriptor = _open(file.path)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = (self.format(record) + "\n").encode(errors="backslashreplace")
            self._follow(len(line))
            os.write(self._descriptor, line)
        except Exception:
            self.handleError(record)

    def _follow(self, num_bytes: int) -> None:
        """Rotate if the next line doesn't fit any more, and open the file that is there now."""
        own = os.fstat(self._descriptor)
        if self._file.count and own.st_size and own.st_size + num_bytes > self._file.max_bytes:
            self._rotate(own)
        try:
            there = os.stat(self._file.path)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_ino, there.st_dev) != (own.st_ino, own.st_dev):
            os.close(self._descriptor)
            self._descriptor = _open(self._file.path)

    def _rotate(self, own: os.stat_result) -> None:
        """Rename the files, unless another process has done it."""
        path = self._file.path
        lock = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                there = os.stat(path)
            except FileNotFoundError:
                return
            if there.st_ino != own.st_ino:
                return
            for number in range(self._file.count - 1, 0, -1):
                _move(f"{path}.{number}", f"{path}.{number + 1}")
            _move(str(path), f"{path}.1")
        finally:
            os.close(lock)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        super().close()


def _open(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o640)


def _move(source: str, target: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.replace(source, target)
