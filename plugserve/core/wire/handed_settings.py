"""Sends the settings from the supervisor to a child over its standard input, never through a file.

They contain API keys, which must not remain in a file when the server is killed.
"""

from __future__ import annotations

import os

from plugserve.core.settings.settings import Settings


def as_line(settings: Settings) -> bytes:
    """The first line that the supervisor writes to the child's standard input."""
    return settings.model_dump_json().encode() + b"\n"


def receive_settings(descriptor: int = 0) -> Settings:
    """Read that line, once, at the child's start. Raises EOFError if the supervisor has exited."""
    return Settings.model_validate_json(receive_line(descriptor))


def receive_line(descriptor: int = 0) -> bytes:
    """The next line from the parent process, read byte by byte so that nothing of later ones is taken. Raises EOFError
    if it has exited."""
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = os.read(descriptor, 1)
        if not piece:
            raise EOFError("the parent process exited before it sent the settings")
        line += piece
    return bytes(line)
