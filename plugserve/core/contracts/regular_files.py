"""Reads files that users and clients name: only regular files up to a given size. Reading a FIFO, socket or device in a
model's or adapter's folder could block forever, and a huge file could exhaust memory.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

_KINDS: Final = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def read_regular_file(path: Path, most_bytes: int) -> bytes:
    """The content of a file. Raises OSError: FileNotFoundError, or one whose strerror describes the fault.

    The kind is checked before the file is opened, as opening a device may do something, and again on what was opened.
    """
    try:
        _check_kind(path, os.stat(path))
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a null byte in the name
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        _check_kind(path, status)
        data = b"" if status.st_size > most_bytes else file.read(most_bytes + 1)
    if max(status.st_size, len(data)) > most_bytes:
        size = max(status.st_size, len(data))
        raise OSError(errno.EFBIG, f"it is too large ({size} bytes, at most {most_bytes} are read)", str(path))
    return data


def _check_kind(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))
