"""GET /health and /version."""

from __future__ import annotations

from typing import Any

import orjson
from sanic import Request, Sanic
from sanic.response import HTTPResponse

from plugserve.server.error_responses import JSON_TYPE
from plugserve.server.state import state_of


def add_routes(app: Sanic[Any, Any]) -> None:
    app.add_route(health, "/health", methods=["GET", "HEAD"])
    app.add_route(version, "/version", methods=["GET"])


async def health(request: Request) -> HTTPResponse:
    """200 when every start-up model can answer; 503 while loading, with an engine down, or when stopping."""
    state = state_of(request)
    status = "stopping" if state.is_stopping else state.models.state
    body: dict[str, Any] = {"status": status}
    if status not in ("ok", "stopping"):
        body["models"] = {model.name: model.state for model in state.models}
    return HTTPResponse(orjson.dumps(body), status=200 if status == "ok" else 503, content_type=JSON_TYPE)


async def version(request: Request) -> HTTPResponse:
    return HTTPResponse(orjson.dumps({"version": state_of(request).version}), content_type=JSON_TYPE)
