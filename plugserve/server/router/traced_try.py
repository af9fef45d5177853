"""The span of one try at an upstream, by OpenTelemetry's conventions for HTTP clients, and the context sent."""

from __future__ import annotations

from types import TracebackType
from typing import Final

from sanic import Request

from plugserve.server.router.policies import Choice
from plugserve.server.worker.http.strict_app import trace_of

_CLIENT_ERROR: Final = 400


class TracedTry:
    """A context around one try. status is that of the upstream's answer, None before it came."""

    def __init__(self, request: Request, choice: Choice, number: int) -> None:
        self._request = request
        self._choice = choice
        self._number = number
        self._is_recording = trace_of(request).is_recording
        self._call = trace_of(request).call()
        self.status: int | None = None

    def replacing(self, fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """The header fields for the upstream, with this try as the caller. Unchanged while tracing is off."""
        own = [(name.encode(), value.encode()) for name, value in self._call.fields]
        if not own:
            return fields
        replaced = {name for name, _ in own}
        return [field for field in fields if field[0] not in replaced] + own

    def __enter__(self) -> TracedTry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._is_recording:
            return
        upstream = self._choice.upstream
        failure = type(error).__name__ if error is not None else ""
        if not failure and self.status is not None and self.status >= _CLIENT_ERROR:
            failure = str(self.status)
        self._call.finish(
            self._request.method,
            {
                "http.request.method": self._request.method,
                "http.request.resend_count": self._number - 1 or None,
                "http.response.status_code": self.status,
                "server.address": upstream.address.host,
                "server.port": upstream.address.port,
                "url.full": upstream.address.url + self._request.path,
                "plugserve.upstream": upstream.name,
                "plugserve.upstream.choice": self._choice.reason,
            },
            failure,
        )
