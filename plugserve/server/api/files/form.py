"""Reads multipart/form-data (RFC 7578), as clients send a file with its fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sanic.headers import parse_content_header

from plugserve.core.errors import RequestError

_MAX_PARTS: Final = 16
_MAX_HEAD_BYTES: Final = 8 * 1024


@dataclass(frozen=True, slots=True)
class Part:
    """One part. filename is None for a plain field."""

    content: memoryview
    filename: str | None = None

    @property
    def text(self) -> str:
        """A plain field's value."""
        return bytes(self.content).decode("utf-8", "replace")


def read_form(content_type: str, body: bytes) -> dict[str, Part]:
    """The parts by name, without a copy of their contents. Searches the whole body: call it in a thread. Raises
    RequestError (415, 400)."""
    kind, options = parse_content_header(content_type)
    boundary = str(options.get("boundary", ""))
    if kind != "multipart/form-data":
        raise RequestError(
            f"Content-Type must be multipart/form-data, got {kind[:60] or 'none'}.",
            status=415,
            code="unsupported_media_type",
        )
    if not 0 < len(boundary) <= 70:
        raise _malformed("its Content-Type names no boundary")
    mark = b"--" + boundary.encode("utf-8", "replace")
    if not body.startswith(mark):
        raise _malformed("it doesn't begin with its boundary")
    parts: dict[str, Part] = {}
    at = len(mark)
    while body[at : at + 2] != b"--":
        if len(parts) >= _MAX_PARTS:
            raise _malformed(f"it has more than {_MAX_PARTS} parts")
        end = body.find(b"\r\n" + mark, at)
        if end < 0 or body[at : at + 2] != b"\r\n":
            raise _malformed("its last part isn't closed")
        name, part = _part(body, at, end)
        parts[name] = part
        at = end + 2 + len(mark)
    return parts


def _part(body: bytes, start: int, end: int) -> tuple[str, Part]:
    """The part between two marks; start is that of the line end after the first one."""
    head_end = body.find(b"\r\n\r\n", start, min(end, start + _MAX_HEAD_BYTES))
    if head_end < 0:
        raise _malformed("a part has no headers, or too long ones")
    for line in body[start + 2 : head_end].decode("utf-8", "replace").split("\r\n"):
        field, _, value = line.partition(":")
        if field.strip().lower() == "content-disposition":
            _, options = parse_content_header(value.strip())
            filename = options.get("filename")
            name = str(options.get("name", ""))
            return name, Part(memoryview(body)[head_end + 4 : end], None if filename is None else str(filename))
    raise _malformed("a part has no Content-Disposition")


def _malformed(reason: str) -> RequestError:
    return RequestError(f"The form can't be read: {reason}.", code="invalid_form")
