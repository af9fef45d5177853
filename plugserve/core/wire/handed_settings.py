"""Sends the settings from the supervisor to a child over its standard input, never through a file.

They contain API keys, which must not remain in a file when the server is killed.
"""

from __future__ import annotations

import os

from plugserve.core.settings.settings import Settings

_PIECE_BYTES = 65536


def as_line(settings: Settings) -> bytes:
    """The first line that the supervisor writes to the child's standard input."""
    return settings.model_dump_json().encode() + b"\n"


def receive_settings(descriptor: int = 0) -> Settings:
    """Read that line, once, at the child's start. Raises EOFError if the supervisor has exited."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(descriptor, _PIECE_BYTES)
        if not piece:
            raise EOFError("the supervisor exited before it sent the settings")
        line += piece
    return Settings.model_validate_json(line)
