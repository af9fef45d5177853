"""--files-dir: the folder of clients' files, of one server at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from plugserve.core.errors import ConfigError


@contextlib.contextmanager
def held_files_folder(path: str | None) -> Iterator[None]:
    """Keep other servers out of the folder: they would run its batches on other models. None is no folder. Raises
    ConfigError for one that can't be used."""
    if path is None:
        yield
        return
    folder = Path(path)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "server.lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise ConfigError(f"--files-dir {path} can't be used: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise ConfigError(f"--files-dir {path} is used by another server; give each its own") from None
    try:
        yield
    finally:
        os.close(descriptor)
