"""Header fields on their way through a router (RFC 9110, section 7.6): those of one connection stay behind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sanic import Request
from sanic.compat import Header

from plugserve.server.router.upstream_address import UpstreamAddress
from plugserve.server.router.upstream_connection import Fields

_OF_ONE_CONNECTION: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_REPLACED: Final = frozenset({"host", "content-length", "expect", "x-request-id", "x-forwarded-for"})
_KEYS: Final = frozenset({"authorization", "x-api-key"})
UPSTREAM_FIELD: Final = "x-plugserve-upstream"


def request_fields(request: Request, *, is_decoded: bool) -> list[tuple[bytes, bytes]]:
    """The fields of a client's request for any upstream, without keys. is_decoded: the body is no longer in its
    Content-Encoding."""
    headers = request.headers
    dropped = _OF_ONE_CONNECTION | _REPLACED | _KEYS | _named_in(headers.getall("connection", ()))
    if is_decoded:
        dropped |= {"content-encoding"}
    fields = [(_bytes(name.lower()), _bytes(value)) for name, value in headers.items() if name.lower() not in dropped]
    known = {name for name, _ in fields}
    client = request.ip or ""
    before = ", ".join(headers.getall("x-forwarded-for", ()))
    fields.append((b"x-forwarded-for", _bytes(f"{before}, {client}" if before else client)))
    if b"x-forwarded-proto" not in known:
        fields.append((b"x-forwarded-proto", b"https" if request.scheme == "https" else b"http"))
    if b"x-forwarded-host" not in known and "host" in headers:
        fields.append((b"x-forwarded-host", _bytes(headers["host"])))
    fields.append((b"x-request-id", _bytes(request.ctx.id)))
    return fields


def key_fields(request: Request, address: UpstreamAddress, *, has_own_keys: bool) -> Fields:
    """The key for an upstream: its own one. Without one, the client's, unless that was a key to the router."""
    given = [(name, value) for name, value in request.headers.items() if name.lower() in _KEYS]
    if given and not has_own_keys:
        return [(_bytes(name.lower()), _bytes(value)) for name, value in given]
    if address.key is None:
        return []
    if any(name.lower() == "authorization" for name, _ in given) or not given:
        return [(b"authorization", b"Bearer " + address.key.encode())]
    return [(b"x-api-key", address.key.encode())]  # as the client's API has it


def answer_headers(fields: Fields, upstream: str, *, drops_cors: bool) -> Header:
    """The fields of an upstream's answer for the client. drops_cors: the router's own rules for origins apply."""
    named = _named_in(_text(value) for name, value in fields if name == b"connection")
    headers = Header()
    for raw_name, value in fields:
        name = _text(raw_name)
        if name in _OF_ONE_CONNECTION or name in named or (drops_cors and name.startswith("access-control-")):
            continue
        headers.add(name, _text(value))
    headers[UPSTREAM_FIELD] = upstream
    return headers


def _named_in(values: Iterable[str]) -> frozenset[str]:
    """The names of further fields of one connection, which Connection lists."""
    return frozenset(name.strip().lower() for value in values for name in value.split(",")) - {"content-length"}


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
