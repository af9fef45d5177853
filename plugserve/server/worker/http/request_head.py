"""The head of an HTTP/1 request, parsed by RFC 9110 and RFC 9112 without tolerance where proxies and servers differ.

Ambiguous requests are refused (400), because differences between parsers allow request smuggling.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from plugserve.core.errors import RequestError

MAX_HEAD_BYTES: Final = 8192
MAX_FIELDS: Final = 128

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE: Final = re.compile(rf"({_TOKEN}) ([\x21-\x7e]+) HTTP/(\d)\.(\d)")
_FIELD: Final = re.compile(rf"({_TOKEN}):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]*)?")
_ABSOLUTE_FORM: Final = re.compile(r"https?://[^/?#@\s]+", re.IGNORECASE)
_BARE_LINE_FEED: Final = re.compile(rb"(?<!\r)\n")
_TOKEN_BYTES: Final = frozenset(b"!#$%&'*+.^_`|~-" + string.digits.encode() + string.ascii_letters.encode())
_MAX_LENGTH_DIGITS: Final = 18  # more is beyond any limit, and slow to parse
_SINGLE: Final = frozenset({"host", "content-length", "transfer-encoding"})


class HttpError(RequestError):
    """The request breaks HTTP's rules or the server's limits: framing, size, time, coding.

    headers: more fields for the answer.
    """

    def __init__(self, message: str, *, status: int = 400, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message, status=status)
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class RequestHead:
    """One request line with its fields, names in lower case. num_body_bytes: by Content-Length, None without it."""

    method: str
    target: str
    version: str
    fields: list[tuple[str, str]]
    num_body_bytes: int | None
    is_chunked: bool
    keeps_alive: bool
    expects_continue: bool


def find_head_end(buffer: bytearray, checked: int) -> int:
    """The index of the empty line after the head, -1 if it has not arrived. The first `checked` bytes were searched
    before.

    Raises HttpError as soon as the bytes can't become a valid request or are too large.
    """
    if buffer and buffer[0] not in _TOKEN_BYTES:
        raise HttpError("The request does not begin with a method.")
    end = buffer.find(b"\r\n\r\n", max(0, checked - 3))
    if end > MAX_HEAD_BYTES or (end < 0 and len(buffer) > MAX_HEAD_BYTES):
        if buffer.find(b"\r\n", 0, MAX_HEAD_BYTES) < 0:
            raise HttpError(f"The request line is longer than {MAX_HEAD_BYTES} bytes.", status=414)
        raise HttpError(f"The headers are larger than {MAX_HEAD_BYTES} bytes.", status=431)
    if end < 0 and _BARE_LINE_FEED.search(buffer, max(0, checked - 1)):
        raise HttpError("A line of the headers ends without a carriage return.")
    return end


def parse_head(head: bytes) -> RequestHead:
    """head: the bytes before the empty line. Raises HttpError (400, 414, 417, 431, 501 or 505)."""
    line, *lines = head.decode(errors="surrogateescape").split("\r\n")
    method, target, version = _request_line(line)
    if len(lines) > MAX_FIELDS:
        raise HttpError(f"There are more than {MAX_FIELDS} header fields.", status=431)
    fields: list[tuple[str, str]] = []
    special: dict[str, str] = {}
    connection = expectation = ""
    for text in lines:
        name, value = parse_field(text)
        if name in _SINGLE:
            if name in special:
                raise HttpError(f"There are two {name} headers.")
            special[name] = value
        elif name == "connection":
            connection += "," + value.lower()
        elif name == "expect":
            expectation = value.lower()
        fields.append((name, value))
    _check_host(special.get("host"), version)
    options = {option.strip() for option in connection.split(",")}
    is_chunked, num_body_bytes = _framing(special, version)
    return RequestHead(
        method=method,
        target=target,
        version=version,
        fields=fields,
        num_body_bytes=num_body_bytes,
        is_chunked=is_chunked,
        keeps_alive="close" not in options and (version == "1.1" or "keep-alive" in options),
        expects_continue=_expects_continue(expectation, version) and (is_chunked or bool(num_body_bytes)),
    )


def parse_field(line: str) -> tuple[str, str]:
    """A header or trailer field: its name in lower case, and its value."""
    field = _FIELD.fullmatch(line)
    if field is None:
        raise HttpError("A header field is malformed.")
    return field[1].lower(), field[2].rstrip(" \t")


def _request_line(line: str) -> tuple[str, str, str]:
    found = _REQUEST_LINE.fullmatch(line)
    if found is None:
        raise HttpError("The request line is malformed.")
    method, target, major, minor = found.groups()
    if major != "1":
        raise HttpError(f"HTTP/{major}.{minor} is not supported here; use HTTP/1.1.", status=505)
    is_known_form = target.startswith("/") or _ABSOLUTE_FORM.match(target) or (target == "*" and method == "OPTIONS")
    if not is_known_form or "#" in target:
        raise HttpError("The request target is malformed.")
    return method, target, "1.0" if minor == "0" else "1.1"


def _check_host(host: str | None, version: str) -> None:
    if host is None:
        if version == "1.1":
            raise HttpError("There is no Host header.")
    elif not _HOST.fullmatch(host):
        raise HttpError("The Host header is malformed.")


def _framing(special: dict[str, str], version: str) -> tuple[bool, int | None]:
    """(whether the body is chunked, its Content-Length or None)."""
    coding, length = special.get("transfer-encoding"), special.get("content-length")
    if coding is not None:
        if length is not None:
            raise HttpError("Content-Length and Transfer-Encoding exclude each other.")
        if version == "1.0":
            raise HttpError("HTTP/1.0 has no Transfer-Encoding.")
        *others, last = (name.strip().lower() for name in coding.split(","))
        if last != "chunked" or "chunked" in others:
            raise HttpError("The Transfer-Encoding must be chunked.")
        if others:
            raise HttpError("The Transfer-Encoding must be chunked alone.", status=501)
        return True, None
    if length is None:
        return False, None
    if not (length.isascii() and length.isdigit()):
        raise HttpError("The Content-Length is not a number.")
    if len(length) > _MAX_LENGTH_DIGITS:
        raise HttpError("The request is larger than this server allows.", status=413)
    return False, int(length)


def _expects_continue(expectation: str, version: str) -> bool:
    if not expectation or version == "1.0":
        return False
    if expectation != "100-continue":
        raise HttpError("The Expect header must be 100-continue.", status=417)
    return True
