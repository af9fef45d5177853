"""A Sanic app without log lines for clients that disconnect, which refuses malformed HTTP before any key is checked."""

from __future__ import annotations

import asyncio
import itertools
import re
import uuid
from typing import Any, Final, TypeVar

from sanic import Request, Sanic

from plugserve.server.api.error_responses import OpenAiErrorHandler
from plugserve.server.operations.tracing.tracer import NULL_TRACE, RequestTrace
from plugserve.server.worker.http.head_router import HeadRouter
from plugserve.server.worker.http.http_span import end_http
from plugserve.server.worker.http.http_stream import HttpStream
from plugserve.server.worker.http.limited_request import LimitedRequest
from plugserve.server.worker.http.request_head import HttpError

_CONFIG: Final = {"ACCESS_LOG": False, "AUTO_EXTEND": False, "MOTD": False, "FALLBACK_ERROR_FORMAT": "json"}
_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_app_numbers = itertools.count()
App = TypeVar("App", bound="StrictApp")


class StrictApp(Sanic[Any, Any]):
    """The base of the worker's and the router's app. Its state has access, limits and tracer."""

    def _determine_error_format(self, handler: Any) -> str:
        """The format of a route's errors, for which Sanic parses each handler's source; here all are JSON."""
        return "json"

    async def handle_request(self, request: Request) -> None:
        """Handle a request within its trace; ended is called at the end of the answer."""
        trace = request.ctx.trace = self.ctx.state.tracer.begin(request.headers, request.path)
        token = trace.enter()
        error: BaseException | None = None
        try:
            await Sanic.handle_request(self, request)
        except BaseException as failure:
            error = failure
            raise
        finally:
            self.ended(request, trace, error)
            trace.leave(token)

    def ended(self, request: Request, trace: RequestTrace, error: BaseException | None) -> None:
        """The answer is sent, or the request was broken off by error."""
        end_http(trace, request, is_broken=error is not None)
        trace.finish()

    async def handle_exception(self, request: Request, exception: BaseException, run_middleware: bool = True) -> None:
        if isinstance(exception, asyncio.CancelledError):
            return
        if isinstance(exception, HttpError):
            run_middleware = False
            if isinstance(request.stream, HttpStream):
                request.stream.log_refusal(exception)
        await Sanic.handle_exception(self, request, exception, run_middleware)


def make_strict_app(kind: type[App], state: Any, *, is_optimised: bool) -> App:
    """An app of kind with state at app.ctx.state, which has access, limits and tracer. is_optimised: let Sanic rewrite
    its own methods for this app, which it can do once a process."""
    app = kind(
        f"plugserve-{next(_app_numbers)}",
        error_handler=OpenAiErrorHandler(),
        request_class=LimitedRequest,
        router=HeadRouter(),
        configure_logging=False,
    )
    app.ctx.state = state
    app.config.update({**_CONFIG, "TOUCHUP": is_optimised})
    return app


def trace_of(request: Request) -> RequestTrace:
    trace: RequestTrace = getattr(request.ctx, "trace", NULL_TRACE)
    return trace


def request_id(request: Request) -> str:
    """The client's id for its request, else a new one."""
    return clean_id(request.headers.get("x-request-id")) or uuid.uuid4().hex


def clean_id(given: Any) -> str | None:
    """A client's id for its request, unless it could harm a log or a header."""
    return given if isinstance(given, str) and _REQUEST_ID.fullmatch(given) else None


def watch_client(request: Request) -> None:
    """Resume reading. Sanic stops reading while a large body waits to be consumed, but a disconnect is only noticed by
    reading."""
    transport = request.transport
    if transport is not None and not transport.is_closing():
        transport.resume_reading()  # type: ignore[attr-defined]
