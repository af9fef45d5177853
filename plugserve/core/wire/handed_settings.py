"""The settings on their way from the supervisor to a child: over its standard input, never over a disk.

They hold API keys, which must not lie in a file after the server was killed.
"""

from __future__ import annotations

import os

from plugserve.core.settings.settings import Settings

_PIECE_BYTES = 65536


def as_line(settings: Settings) -> bytes:
    """What the supervisor writes to the child's standard input, before anything else."""
    return settings.model_dump_json().encode() + b"\n"


def receive_settings(descriptor: int = 0) -> Settings:
    """Read that line, once, at the child's start. Raises EOFError when the supervisor is gone."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(descriptor, _PIECE_BYTES)
        if not piece:
            raise EOFError("the supervisor left before it handed over the settings")
        line += piece
    return Settings.model_validate_json(line)
