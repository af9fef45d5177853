"""The Sanic app of a router: its own routes, and one that passes everything else on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import unquote

import orjson
from sanic import Request
from sanic.exceptions import NotFound
from sanic.response import BaseHTTPResponse, HTTPResponse

from plugserve.core.errors import EngineUnavailableError
from plugserve.core.metrics.exposition import PROMETHEUS_TYPE
from plugserve.server.api.json_body import JSON_TYPE
from plugserve.server.router.asked import Asked, read_asked
from plugserve.server.router.forwarding import Forwarding
from plugserve.server.router.router_state import RouterState, router_state_of
from plugserve.server.router.sent_to_all import is_for_all, send_to_all
from plugserve.server.router.stored_holder import find_holder
from plugserve.server.router.upstream import Upstream
from plugserve.server.worker.http.http_stream import HttpStream
from plugserve.server.worker.http.strict_app import StrictApp, make_strict_app, request_id, trace_of, watch_client

_READ: Final = ("GET", "HEAD")
_WRITE: Final = ("POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class RouterApp(StrictApp):
    """The app of a router."""


def build_router_app(state: RouterState, *, is_optimised: bool = True) -> RouterApp:
    """is_optimised: see make_strict_app."""
    app = make_strict_app(RouterApp, state, is_optimised=is_optimised)
    app.register_middleware(_on_request, "request")
    app.register_middleware(_on_response, "response")
    app.add_route(_health, "/health", methods=_READ)
    app.add_route(_health, "/ping", methods=(*_READ, "POST"), name="ping")
    app.add_route(_ready, "/ready", methods=_READ)
    app.add_route(_load, "/load", methods=_READ)
    app.add_route(_version, "/version", methods=_READ)
    app.add_route(_metrics, "/metrics", methods=_READ)
    app.add_route(_models, "/v1/models", methods=_READ)
    app.add_route(_one_model, "/v1/models/<path:path>", methods=_READ)
    app.add_route(_forward, "/v1/models/<path:path>", methods=_WRITE, name="change_model")
    app.add_route(_forward, "/", methods=(*_READ, *_WRITE), name="root")
    app.add_route(_forward, "/<path:path>", methods=(*_READ, *_WRITE), name="forward")
    return app


async def _on_request(request: Request) -> HTTPResponse | None:
    """Check the key, give the request an id and an owner."""
    access = router_state_of(request).access
    request.ctx.id = request_id(request)
    watch_client(request)
    if not access.admits(request):
        return access.refusal(request)
    if isinstance(request.stream, HttpStream) and not access.is_open(request):
        request.stream.protocol.has_passed = True
    identity = access.identity_of(request)
    request.ctx.owner = identity.owner if identity is not None else ""
    return access.preflight(request)


async def _on_response(request: Request, response: BaseHTTPResponse) -> None:
    response.headers.setdefault("X-Request-Id", getattr(request.ctx, "id", None) or request_id(request))
    if trace_id := trace_of(request).trace_id:
        response.headers["X-Trace-Id"] = trace_id
    state = router_state_of(request)
    state.access.add_headers(request, response.headers)
    state.metrics.http_requests.labels(str(response.status)).inc()


# ---- the router's own


async def _health(request: Request) -> HTTPResponse:
    """200 while at least one upstream is up; the state of each."""
    state = router_state_of(request)
    status = "stopping" if state.is_stopping else "ok" if state.fleet.num_up else "no upstream is up"
    body = {"status": status, "upstreams": {one.name: one.as_json() for one in state.fleet}}
    return _json(body, 200 if status == "ok" else 503)


async def _ready(request: Request) -> HTTPResponse:
    """200 while a request would be passed on."""
    state = router_state_of(request)
    is_ready = bool(state.fleet.num_up) and not state.is_stopping
    body = {"ready": is_ready, "upstreams_up": state.fleet.num_up, "upstreams": len(state.fleet)}
    return _json(body, 200 if is_ready else 503)


async def _load(request: Request) -> HTTPResponse:
    return _json({"server_load": router_state_of(request).num_in_flight})


async def _version(request: Request) -> HTTPResponse:
    return _json({"version": router_state_of(request).version})


async def _metrics(request: Request) -> HTTPResponse:
    state = router_state_of(request)
    return HTTPResponse(state.metrics.render(state.fleet), content_type=PROMETHEUS_TYPE)


async def _models(request: Request) -> HTTPResponse:
    """The models of all upstreams that are up, as they describe them."""
    return _json({"object": "list", "data": router_state_of(request).fleet.models()})


async def _one_model(request: Request, path: str) -> HTTPResponse | None:
    """An entry of the list; under a name that isn't listed, what an upstream answers that knows it."""
    state, name = router_state_of(request), unquote(path)
    entry = next((one for one in state.fleet.models() if one["id"] == name), None)
    if entry is not None:
        return _json(entry)
    with state.in_flight():
        asked = await read_asked(request, state)
        return await Forwarding(request, asked, state).run(await _that_serve(name, state))


def _json(body: Any, status: int = 200) -> HTTPResponse:
    return HTTPResponse(orjson.dumps(body), status, content_type=JSON_TYPE)


# ---- everything else


async def _forward(request: Request, path: str = "") -> HTTPResponse | None:
    """Pass the request on to an upstream."""
    state = router_state_of(request)
    if state.access.has_keys and state.access.is_open(request):
        raise NotFound  # what needs no key stays here: an upstream might know the path as one that needs a key
    with state.in_flight():
        asked = await read_asked(request, state)
        if is_for_all(request):
            return await send_to_all(request, asked, state)
        return await Forwarding(request, asked, state).run(await _candidates(request, asked, state))


async def _candidates(request: Request, asked: Asked, state: RouterState) -> Sequence[Upstream]:
    """The upstream that has stored what the request is about, or all that serve its model."""
    if asked.stored_id is not None:
        holder = await find_holder(request, asked.stored_id, state)
        if holder is not None:
            return [holder]
    if asked.model is None and request.method in _READ:
        up = [upstream for upstream in state.fleet if upstream.is_up]
        if not up:
            raise EngineUnavailableError("No server that could serve this request is up; try again in a moment.")
        return up
    return await _that_serve(asked.model, state)


async def _that_serve(model: str | None, state: RouterState) -> Sequence[Upstream]:
    if model is not None and not any(upstream.serves(model) for upstream in state.fleet):
        await state.names.look_up(model)
    return state.fleet.that_serve(model)
