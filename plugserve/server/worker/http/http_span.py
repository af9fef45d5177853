"""The span of an HTTP request, by OpenTelemetry's conventions for HTTP servers.

https://opentelemetry.io/docs/specs/semconv/http/http-spans/
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from sanic import Request

from plugserve.core.errors import EngineError, RequestError
from plugserve.core.wire.failures import failure_of
from plugserve.server.operations.tracing.tracer import RequestTrace

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"})
_PARAMETER: Final = re.compile(r"<([^:>]+)[^>]*>")
_REDACTED: Final = "REDACTED"
_SERVER_ERROR: Final = 500


def end_http(
    trace: RequestTrace, request: Request, *, is_broken: bool = False, failure: BaseException | None = None
) -> None:
    """End the span of request. is_broken: its client has left before the answer was complete. failure is that of a
    stream that had begun, whose status was 200."""
    if not trace.is_recording:
        return
    method = request.method if request.method in _METHODS else "HTTP"
    route = route_of(request)
    status = _status(request)
    name = f"{method} {route}" if route else method
    trace.end_http(name, _attributes(request, method, route, status, is_broken), _error(status, failure))


def route_of(request: Request) -> str | None:
    """The template of the route that serves request; None for a path without one."""
    return _template(request.route.path) if request.route is not None else None


@lru_cache(maxsize=256)
def _template(path: str) -> str:
    return "/" + _PARAMETER.sub(r"{\1}", path.lstrip("/"))


def _status(request: Request) -> int | None:
    response = request.stream.response if request.stream is not None else None
    return response.status if response is not None else None


def _error(status: int | None, failure: BaseException | None) -> str:
    """The convention's error.type; a fault of the client is no error of the server."""
    if status is not None and status >= _SERVER_ERROR:
        return str(status)
    if failure is None or isinstance(failure, RequestError):
        return ""
    if isinstance(failure, EngineError) and failure_of(failure).status < _SERVER_ERROR:
        return ""
    return type(failure).__name__


def _attributes(
    request: Request, method: str, route: str | None, status: int | None, is_broken: bool
) -> dict[str, Any]:
    host, port = _server(request)
    return {
        "http.request.method": method if method != "HTTP" else "_OTHER",
        "http.request.method_original": request.method[:32] if method == "HTTP" else None,
        "http.route": route,
        "http.response.status_code": status,
        "url.scheme": request.scheme,
        "url.path": request.path,
        "url.query": _query(request.query_string) if request.query_string else None,
        "server.address": host,
        "server.port": port,
        "client.address": request.ip or None,
        "network.protocol.version": request.version,
        "user_agent.original": request.headers.get("user-agent"),
        "plugserve.request.id": getattr(request.ctx, "id", None),
        "plugserve.client_disconnected": True if is_broken else None,
    }


def _server(request: Request) -> tuple[str | None, int | None]:
    """Host and port as the client gave them."""
    host, colon, port = (request.headers.get("host") or "").rpartition(":")
    if colon and port.isdigit() and not host.endswith(":"):
        return host.strip("[]") or None, int(port)
    return (request.headers.get("host") or "").strip("[]") or None, None


def _query(query: str) -> str:
    """The names of a query's parameters; values may be secrets."""
    return urlencode([(name, _REDACTED) for name, _ in parse_qsl(query, keep_blank_values=True)])
