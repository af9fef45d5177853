"""The chunked transfer coding of request bodies (RFC 9112, section 7.1)."""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final

from plugserve.server.worker.http.request_head import MAX_FIELDS, HttpError, parse_field

_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?")
_SIZE_LINE_SO_FAR: Final = re.compile(rb"[0-9A-Fa-f]{0,16}[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?\r?")
_MAX_LINE_BYTES: Final = 1024
_BYTES_A_STEP: Final = 65536


class _Part(Enum):
    SIZE = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILER = auto()
    END = auto()


class ChunkedBody:
    """Takes a body out of a connection's buffer, as far as it has arrived. Trailer fields are checked and dropped."""

    def __init__(self) -> None:
        self._part = _Part.SIZE
        self._num_left = 0
        self._num_trailers = 0
        self.stopped_early = False  # the last take reached its bound and left bytes in the buffer

    @property
    def is_complete(self) -> bool:
        return self._part is _Part.END

    def take(self, buffer: bytearray) -> bytes:
        """Remove what is complete from the beginning of buffer and return the data in it; b"" when more must arrive or
        the body has ended. Works on a bounded number of bytes. Raises HttpError (400) for anything malformed."""
        data = bytearray()
        position, stop = 0, min(len(buffer), _BYTES_A_STEP)
        while position < stop and self._part is not _Part.END:
            if self._part is _Part.DATA:
                piece = buffer[position : position + self._num_left]
                data += piece
                position += len(piece)
                self._num_left -= len(piece)
                if not self._num_left:
                    self._part = _Part.DATA_END
                continue
            end = buffer.find(b"\r\n", position, position + _MAX_LINE_BYTES)
            if end < 0:
                self._check_unfinished(buffer, position)
                break
            self._note_line(bytes(buffer[position:end]))
            position = end + 2
        self.stopped_early = position >= stop and stop < len(buffer)
        del buffer[:position]
        return bytes(data)

    def _note_line(self, line: bytes) -> None:
        if self._part is _Part.DATA_END:
            if line:
                raise HttpError("A chunk is longer than its size.")
            self._part = _Part.SIZE
        elif self._part is _Part.SIZE:
            found = _SIZE_LINE.fullmatch(line)
            if found is None:
                raise HttpError("The size of a chunk is malformed.")
            self._num_left = int(found[1], 16)
            self._part = _Part.DATA if self._num_left else _Part.TRAILER
        elif line:
            self._num_trailers += 1
            if self._num_trailers > MAX_FIELDS:
                raise HttpError(f"There are more than {MAX_FIELDS} trailer fields.", status=431)
            parse_field(line.decode(errors="surrogateescape"))
        else:
            self._part = _Part.END

    def _check_unfinished(self, buffer: bytearray, position: int) -> None:
        """Refuse an incomplete line as soon as it can't become valid."""
        if len(buffer) - position >= _MAX_LINE_BYTES or b"\n" in buffer[position:]:
            raise HttpError("The chunked coding is malformed.")
        rest = bytes(buffer[position:])
        if self._part is _Part.DATA_END and rest not in (b"", b"\r"):
            raise HttpError("A chunk is longer than its size.")
        if self._part is _Part.SIZE and not _SIZE_LINE_SO_FAR.fullmatch(rest):
            raise HttpError("The size of a chunk is malformed.")
