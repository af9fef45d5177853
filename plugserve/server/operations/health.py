"""GET /health, /ping, /ready, /load and /version: what load balancers and operators ask."""

from __future__ import annotations

from typing import Any, Final

import orjson
from sanic import Request, Sanic
from sanic.response import HTTPResponse

from plugserve.server.api.json_body import JSON_TYPE
from plugserve.server.operations.liveness import hung
from plugserve.server.worker.server_state import ServerState, state_of

_ANSWERING: Final = ("ok", "degraded")
_SERVED: Final = ("up", "unloaded", "unloading")
"""A model in one of these states is served, or loaded for the next request."""


def add_routes(app: Sanic[Any, Any]) -> None:
    app.add_route(health, "/health", methods=["GET", "HEAD"])
    app.add_route(health, "/ping", methods=["GET", "HEAD", "POST"], name="ping")
    app.add_route(ready, "/ready", methods=["GET", "HEAD"])
    app.add_route(load, "/load", methods=["GET"])
    app.add_route(version, "/version", methods=["GET"])


async def health(request: Request) -> HTTPResponse:
    """200 when every model that is kept loaded can answer and every process moves, also with some of its engines down
    ("degraded"); 503 while loading, without an engine, with an engine or worker that hangs, or when stopping."""
    state = state_of(request)
    body = _condition(state)
    status = body["status"]
    if status not in (*_ANSWERING, "stopping"):
        body["models"] = {model.name: model.state for model in state.models}
    return HTTPResponse(orjson.dumps(body), status=200 if status in _ANSWERING else 503, content_type=JSON_TYPE)


async def ready(request: Request) -> HTTPResponse:
    """200 when a request would be admitted now; 503 with the reason while loading, dead, hung or stopping."""
    state = state_of(request)
    condition = _condition(state)
    waiting = {model.name: model.state for model in state.models if model.is_kept and model.state not in _SERVED}
    is_ready = bool(len(state.models)) and not waiting and condition["status"] in _ANSWERING
    body: dict[str, Any] = {"ready": is_ready}
    if not is_ready:
        body |= condition | {"models": waiting}
    return HTTPResponse(orjson.dumps(body), status=200 if is_ready else 503, content_type=JSON_TYPE)


def _condition(state: ServerState) -> dict[str, Any]:
    """status, and the hung processes, except engines that are loading or dead: status shows those."""
    if state.is_stopping:
        return {"status": "stopping"}
    up = {model.name for model in state.models if model.state == "up"}
    engines = hung({name: vitals for name, vitals in state.liveness.engines().items() if name in up})
    workers = hung(state.liveness.workers())
    if not engines and not workers:
        loading = [model.name for model in state.models if model.state == "loading"]
        only_loading = {"loading": loading} if loading and not up and state.models.state == "ok" else {}
        return {"status": state.models.state} | only_loading | _degraded(state)
    status = "hung" if state.models.state != "dead" else "dead"
    return {"status": status} | ({"engines": engines} if engines else {}) | ({"workers": workers} if workers else {})


def _degraded(state: ServerState) -> dict[str, Any]:
    """Models some of whose engines are down while others answer, with the number of those."""
    down = {model.name: number for model in state.models if (number := getattr(model.client, "num_down", 0))}
    return {"status": "degraded", "engines_down": down} if down and state.models.state == "ok" else {}


async def load(request: Request) -> HTTPResponse:
    """The number of requests in this worker, without this one."""
    return HTTPResponse(orjson.dumps({"server_load": state_of(request).num_in_flight}), content_type=JSON_TYPE)


async def version(request: Request) -> HTTPResponse:
    return HTTPResponse(orjson.dumps({"version": state_of(request).version}), content_type=JSON_TYPE)
