"""Access control: API keys, and the origins of web pages (CORS). Denies by default.

With keys set, every path needs one, also unknown paths. Exempt are the paths in OPEN_PATHS, /metrics with
--metrics-no-auth, CORS preflights from allowed origins, and routes that were added with ctx_without_key=True: pages
without data.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Sequence
from typing import Final

import orjson
from sanic import Request
from sanic.compat import Header
from sanic.response import HTTPResponse

from plugserve.core.contracts.requests import Identity
from plugserve.core.settings.key_file import all_keys
from plugserve.core.settings.settings import Settings
from plugserve.server.api.error_responses import error_object
from plugserve.server.api.json_body import JSON_TYPE
from plugserve.server.sandbox.fair_queue import Sender

OPEN_PATHS: Final = frozenset({"/health", "/ready", "/ping", "/version", "/load"})
METRICS_PATH: Final = "/metrics"
_ANY: Final = "*"
_METHODS: Final = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_EXPOSED: Final = "X-Request-Id, X-Trace-Id, Server-Timing, x-plugserve-ignored-fields, Retry-After"
_PREFLIGHT_S: Final = "600"


class Access:
    """The rules of one server. Without keys, every request is accepted. Without origins, browsers let no page of
    another site read answers."""

    def __init__(
        self,
        *,
        keys: Sequence[str] = (),
        metrics_without_key: bool = False,
        origins: Sequence[str] = (),
        methods: Sequence[str] = (_ANY,),
        headers: Sequence[str] = (_ANY,),
        allows_credentials: bool = False,
    ) -> None:
        self.replace_keys(keys)
        self._open = OPEN_PATHS | {METRICS_PATH} if metrics_without_key else OPEN_PATHS
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)
        self._methods = ", ".join(methods)
        self._headers = ", ".join(headers)
        self._allows_credentials = allows_credentials

    # ---- keys

    def replace_keys(self, keys: Sequence[str]) -> None:
        """Replace the set of valid keys."""
        self._keys = [_as_bytes(key) for key in keys]
        self._key_names = [key_name(key) for key in keys]

    @property
    def has_keys(self) -> bool:
        """Requests need a key."""
        return bool(self._keys)

    @property
    def num_keys(self) -> int:
        return len(self._keys)

    @property
    def has_origins(self) -> bool:
        """Pages of some origins may read answers."""
        return bool(self._origins)

    def admits(self, request: Request) -> bool:
        """The request has a valid key, or its path needs none."""
        return self.is_open(request) or self.has_valid_key(request)

    def has_valid_key(self, request: Request) -> bool:
        """The request has a valid key, or the server has none."""
        return not self._keys or bool(self._key_name_of(request.headers))

    def is_open(self, request: Request) -> bool:
        """The request's path needs no key."""
        route = request.route
        if route is not None and getattr(route.ctx, "without_key", False):
            return True
        return (request.path.rstrip("/") or "/") in self._open or self._is_preflight(request)

    def identity_of(self, request: Request) -> Identity | None:
        """The sender, named after the key; None without keys. Each key is a tenant."""
        name = self._key_name_of(request.headers)
        return Identity(name) if name else None

    def sender_of(self, request: Request, user: str | None = None) -> Sender:
        """The sender, for queues that take turns between senders."""
        return Sender(self._key_name_of(request.headers) or request.ip or "", user or "")

    def _key_name_of(self, headers: Header) -> str:
        """The name of the key, empty for none. Compares with every key, in constant time."""
        found = ""
        for given in _given_keys(headers):
            for key, name in zip(self._keys, self._key_names, strict=True):
                if hmac.compare_digest(given, key):
                    found = name
        return found

    def refusal(self, request: Request) -> HTTPResponse:
        """The 401 response to a request without a valid key."""
        is_missing = not any(_given_keys(request.headers))
        message = (
            "This server needs an API key: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
            if is_missing
            else "The API key is not one of this server's."
        )
        return HTTPResponse(
            orjson.dumps(error_object(401, message, code="invalid_api_key")),
            status=401,
            headers={"WWW-Authenticate": "Bearer"},
            content_type=JSON_TYPE,
        )

    # ---- cross-origin requests

    def preflight(self, request: Request) -> HTTPResponse | None:
        """The answer to a browser's preflight; None for any other request."""
        if not self._is_preflight(request):
            return None
        asked = request.headers.get("access-control-request-headers") or ""
        headers = {
            "Access-Control-Allow-Methods": _METHODS if self._methods == _ANY else self._methods,
            "Access-Control-Max-Age": _PREFLIGHT_S,
        }
        if asked or self._headers != _ANY:
            headers["Access-Control-Allow-Headers"] = asked if self._headers == _ANY else self._headers
        return HTTPResponse(status=204, headers=headers)

    def add_headers(self, request: Request, headers: Header) -> None:
        """The headers that let the page that sent request read the answer."""
        if not self._origins:
            return
        if _ANY not in self._origins:
            headers.add("Vary", "Origin")
        if not self._allows_origin(request):
            return
        headers["Access-Control-Allow-Origin"] = _ANY if _ANY in self._origins else request.headers["origin"]
        headers["Access-Control-Expose-Headers"] = _EXPOSED
        if self._allows_credentials:
            headers["Access-Control-Allow-Credentials"] = "true"

    def _is_preflight(self, request: Request) -> bool:
        is_asking = request.method == "OPTIONS" and "access-control-request-method" in request.headers
        return is_asking and self._allows_origin(request)

    def _allows_origin(self, request: Request) -> bool:
        origin = request.headers.get("origin")
        return origin is not None and (_ANY in self._origins or origin.lower() in self._origins)


def access_of(settings: Settings) -> Access:
    """The rules that the settings give. Raises ConfigError for a faulty file of keys."""
    return Access(
        keys=all_keys(settings.api_key, settings.api_key_file),
        metrics_without_key=settings.metrics_no_auth,
        origins=settings.allowed_origins,
        methods=settings.allowed_methods,
        headers=settings.allowed_headers,
        allows_credentials=settings.allow_credentials,
    )


def key_name(key: str) -> str:
    """A key's name in logs and traces: "key-" and the first 8 digits of its SHA-256."""
    return "key-" + hashlib.sha256(_as_bytes(key)).hexdigest()[:8]


def _given_keys(headers: Header) -> Iterator[bytes]:
    """Every key that a request carries."""
    for value in headers.getall("authorization", ()):
        scheme, _, key = value.strip().partition(" ")
        if scheme.lower() == "bearer" and key.strip():
            yield _as_bytes(key.strip())
    for value in headers.getall("x-api-key", ()):
        if value.strip():
            yield _as_bytes(value.strip())


def _as_bytes(text: str) -> bytes:
    return text.strip().encode("utf-8", "surrogateescape")
