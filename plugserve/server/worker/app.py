"""The Sanic app of one worker: routes, the checks before every request, what every response carries.

worker_process.py serves it in a separate process, tests in their own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from sanic import Request
from sanic.response import BaseHTTPResponse, HTTPResponse

from plugserve.core.contracts.requests import Refusal, RequestOutcome, RequestView
from plugserve.core.errors import RequestError
from plugserve.server.api.anthropic import routes as anthropic
from plugserve.server.api.batches import routes as batches
from plugserve.server.api.chat import routes as chat
from plugserve.server.api.completions import routes as completions
from plugserve.server.api.embeddings import routes as embeddings
from plugserve.server.api.error_responses import refusal_response
from plugserve.server.api.files import routes as files
from plugserve.server.api.invocations import routes as invocations
from plugserve.server.api.json_body import read_object
from plugserve.server.api.json_size import check_size
from plugserve.server.api.models import lora_routes, pool_routes
from plugserve.server.api.models import routes as models
from plugserve.server.api.openapi import routes as openapi
from plugserve.server.api.rerank import routes as rerank
from plugserve.server.api.responses import routes as responses
from plugserve.server.api.tokenize import routes as tokenize
from plugserve.server.operations import health, live, memory, monitoring
from plugserve.server.operations.access import METRICS_PATH
from plugserve.server.operations.tracing.tracer import RequestTrace
from plugserve.server.pipeline.served_request import RequestEnding, report_ending
from plugserve.server.ui import routes as ui
from plugserve.server.worker.http.http_span import end_http
from plugserve.server.worker.http.http_stream import HttpStream
from plugserve.server.worker.http.strict_app import (
    StrictApp,
    clean_id,
    make_strict_app,
    request_id,
    trace_of,
    watch_client,
)
from plugserve.server.worker.server_state import ServerState, state_of

_ROUTES: Final = (
    health,
    models,
    monitoring,
    memory,
    live,
    chat,
    completions,
    responses,
    anthropic,
    embeddings,
    files,
    batches,
    rerank,
    invocations,
    tokenize,
    lora_routes,
    pool_routes,
    openapi,
    ui,
)
_MAX_MODEL_NAME: Final = 256  # longer names belong to no model, and are cut in logs and spans


class PlugserveApp(StrictApp):
    """The worker's app: calls the last hooks of each request."""

    def ended(self, request: Request, trace: RequestTrace, error: BaseException | None) -> None:
        """Call plugserve_request_ended in the background, if plugserve_authorize was called for the request."""
        ending: RequestEnding | None = getattr(request.ctx, "ending", None)
        end_http(trace, request, is_broken=error is not None, failure=ending.error if ending is not None else None)
        view: RequestView | None = getattr(request.ctx, "authorized_view", None)
        if view is not None:
            state_of(request).in_background(_end(request, view, trace, error))
        else:
            trace.finish()


def build_app(state: ServerState, *, is_optimised: bool = True) -> PlugserveApp:
    """An app that serves state's models. is_optimised: see make_strict_app."""
    app = make_strict_app(PlugserveApp, state, is_optimised=is_optimised)
    app.register_middleware(_on_request, "request")
    app.register_middleware(_on_response, "response")
    for part in _ROUTES:
        part.add_routes(app)
    return app


async def _on_request(request: Request) -> HTTPResponse | None:
    """Check the key, give the request an id and a RequestView, then call plugserve_authorize."""
    state = state_of(request)
    request.ctx.id = request_id(request)
    watch_client(request)
    if not state.access.admits(request):
        return state.access.refusal(request)
    if isinstance(request.stream, HttpStream) and not state.access.is_open(request):
        request.stream.protocol.has_passed = True
    preflight = state.access.preflight(request)
    if preflight is not None:
        return preflight
    body = await _body_or_none(request, state)
    if body is not None and "x-request-id" not in request.headers:
        request.ctx.id = clean_id(body.get("request_id")) or request.ctx.id
    request.ctx.view = _view(request, body)
    if state.access.is_open(request) or request.path.rstrip("/") == METRICS_PATH:
        return None
    request.ctx.authorized_view = request.ctx.view
    answer = await state.hooks.authorize(request.ctx.view)
    if isinstance(answer, Refusal):
        return refusal_response(answer, request.path)
    if answer is not None:
        request.ctx.view = request.ctx.authorized_view = replace(request.ctx.view, identity=answer)
    return None


async def _end(request: Request, view: RequestView, trace: RequestTrace, error: BaseException | None) -> None:
    """Call the last hooks of a request, in order; then its trace is finished."""
    try:
        await _call_last_hooks(request, view, error)
    finally:
        trace.finish()


async def _call_last_hooks(request: Request, view: RequestView, error: BaseException | None) -> None:
    ending: RequestEnding | None = getattr(request.ctx, "ending", None)
    status: int | None = getattr(request.ctx, "status", None)
    hooks = state_of(request).hooks
    outcome = RequestOutcome(status, error is None and status is not None, error)
    if ending is not None:
        outcome = replace(outcome, error=error or ending.error, usage=ending.usage, timings=ending.timings)
        view = ending.view
        await report_ending(hooks, ending)
    await hooks.request_ended(view, outcome)


async def _on_response(request: Request, response: BaseHTTPResponse) -> None:
    request.ctx.status = response.status
    response.headers["X-Request-Id"] = getattr(request.ctx, "id", None) or request_id(request)
    if trace_id := trace_of(request).trace_id:
        response.headers["X-Trace-Id"] = trace_id
    state_of(request).access.add_headers(request, response.headers)
    route = request.route
    path = "/" + route.path.lstrip("/") if route is not None else "other"
    state_of(request).metrics.http_requests.labels(path, str(response.status)).inc()


def _view(request: Request, body: dict[str, Any] | None) -> RequestView:
    model = body.get("model") if body is not None else None
    return RequestView(
        id=request.ctx.id,
        path=request.path,
        method=request.method,
        headers={name.lower(): value for name, value in request.headers.items()},
        client=request.ip or "",
        model=model[:_MAX_MODEL_NAME] if isinstance(model, str) else None,
        body=body,
        identity=state_of(request).access.identity_of(request),
    )


async def _body_or_none(request: Request, state: ServerState) -> dict[str, Any] | None:
    """The body where it is a JSON object; a malformed one is reported after authorization."""
    if not request.body or "json" not in (request.headers.get("content-type") or "").lower():
        return None
    await check_size(request.body, state.limits.max_body_values, state.in_pool)
    try:
        return read_object(request.body)
    except RequestError as fault:
        request.ctx.body_fault = fault
        return None
