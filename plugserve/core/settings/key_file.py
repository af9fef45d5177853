"""API keys from a file, one a line; empty lines and lines that begin with # are skipped."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from plugserve.core.errors import ConfigError

_MOST_BYTES = 1 << 20


def all_keys(keys: Sequence[str], path: str | None) -> list[str]:
    """The keys given as settings and those in the file, each once. Raises ConfigError for a file without a key, so that
    a faulty file never leaves the server without keys."""
    found = list(keys)
    if path is not None:
        in_file = [line.strip() for line in _read(path).splitlines()]
        in_file = [line for line in in_file if line and not line.startswith("#")]
        if not in_file:
            raise ConfigError(f"--api-key-file {path} contains no key; write one a line")
        found += in_file
    return list(dict.fromkeys(found))


def _read(path: str) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise ConfigError(f"--api-key-file {path} is not a regular file")
            if facts.st_size > _MOST_BYTES:
                raise ConfigError(f"--api-key-file {path} is larger than {_MOST_BYTES >> 20} MiB")
            return file.read(_MOST_BYTES).decode("utf-8", "surrogateescape")
    except OSError as error:
        raise ConfigError(f"--api-key-file {path} can't be read: {error.strerror}") from None
