"""The content codings of request bodies: gzip and deflate, decoded up to a limit (RFC 9110, section 8.4)."""

from __future__ import annotations

import zlib
from typing import Final

from plugserve.server.worker.http.request_head import HttpError

_ACCEPTED: Final = "gzip, deflate"
_GZIP: Final = zlib.MAX_WBITS | 16
_ZLIB: Final = zlib.MAX_WBITS
_RAW: Final = -zlib.MAX_WBITS
_MAX_MEMBERS: Final = 64  # a gzip file is a sequence of members


def coding_of(content_encoding: str | None) -> str:
    """The body's coding: "gzip", "deflate", or "" for none. Raises HttpError (415) for any other Content-Encoding."""
    coding = (content_encoding or "").strip().lower().removeprefix("x-")
    if coding in ("", "identity"):
        return ""
    if coding in ("gzip", "deflate"):
        return coding
    raise HttpError(
        f"The Content-Encoding {coding[:40]!r} is not supported; send the body as it is, or as {_ACCEPTED}.",
        status=415,
        headers={"Accept-Encoding": _ACCEPTED},
    )


def decode(body: bytes, coding: str, max_bytes: int) -> bytes:
    """Raises HttpError: 413 for more than max_bytes, 400 for what is not of that coding. Releases the interpreter lock
    while it works; its time is bounded by max_bytes."""
    try:
        return _decode_gzip(body, max_bytes) if coding == "gzip" else _decode_deflate(body, max_bytes)
    except zlib.error:
        raise HttpError(f"The body is not in the Content-Encoding {coding}.") from None


def _decode_gzip(body: bytes, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    for _ in range(_MAX_MEMBERS):
        part, body = _decode_stream(body, _GZIP, max_bytes - sum(map(len, parts)))
        parts.append(part)
        if not body:
            return b"".join(parts)
    raise HttpError(f"The body has more than {_MAX_MEMBERS} gzip members.")


def _decode_deflate(body: bytes, max_bytes: int) -> bytes:
    """deflate means the zlib format; some clients send it without zlib's header."""
    is_zlib = len(body) >= 2 and body[0] & 0x0F == 8 and int.from_bytes(body[:2]) % 31 == 0
    decoded, rest = _decode_stream(body, _ZLIB if is_zlib else _RAW, max_bytes)
    if rest:
        raise HttpError("There are bytes after the body's deflate stream.")
    return decoded


def _decode_stream(body: bytes, window_bits: int, max_bytes: int) -> tuple[bytes, bytes]:
    """(one compressed stream's data, the bytes after it)."""
    stream = zlib.decompressobj(window_bits)
    decoded = stream.decompress(body, max_bytes + 1)
    if len(decoded) > max_bytes:
        raise HttpError("The decoded body is larger than this server allows.", status=413)
    if not stream.eof:
        raise HttpError("The compressed body is cut off.")
    return decoded, stream.unused_data
