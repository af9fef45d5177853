"""Cuts a stream of server-sent events after whole events, so that an error event can follow the last one."""

from __future__ import annotations

import re
from typing import Final

_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")
_MAX_HELD_BYTES: Final = 2**20  # a longer event passes in parts
_NUMBER: Final = re.compile(rb'"sequence_number"\s*:\s*(\d{1,12})')


class EventBoundary:
    """Holds back the beginning of an event until its end comes; changes no byte."""

    def __init__(self) -> None:
        self._held = b""
        self._last = b""

    def take(self, data: bytes) -> bytes:
        """The bytes up to the end of the last whole event."""
        if not self._held and data.endswith(_ENDS):
            self._last = data
            return data
        self._held += data
        end = max(self._held.rfind(mark) + len(mark) if mark in self._held else 0 for mark in _ENDS)
        if not end and len(self._held) > _MAX_HELD_BYTES:
            end = len(self._held)
        whole, self._held = self._held[:end], self._held[end:]
        self._last = whole or self._last
        return whole

    def rest(self) -> bytes:
        """What is left when the stream ends as it should."""
        rest, self._held = self._held, b""
        return rest

    @property
    def next_number(self) -> int:
        """The sequence_number after the last one that passed, 0 for streams without."""
        numbers = _NUMBER.findall(self._last)
        return int(numbers[-1]) + 1 if numbers else 0
