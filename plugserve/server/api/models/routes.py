"""GET /v1/models and /v1/models/{id}; ids may hold slashes."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import unquote

import orjson
from sanic import Request, Sanic
from sanic.response import HTTPResponse

from plugserve.server.api.json_body import JSON_TYPE
from plugserve.server.worker.served_models import ServedModel
from plugserve.server.worker.server_state import ServerState, state_of


def add_routes(app: Sanic[Any, Any]) -> None:
    app.add_route(list_models, "/v1/models", methods=["GET"])
    app.add_route(one_model, "/v1/models/<model_id:path>", methods=["GET"])


async def list_models(request: Request) -> HTTPResponse:
    state = state_of(request)
    every = (*state.models, *state.models.adapters.values())
    models = [describe_model(state, model, name) for model in every for name in model.names]
    return HTTPResponse(orjson.dumps({"object": "list", "data": models}), content_type=JSON_TYPE)


async def one_model(request: Request, model_id: str) -> HTTPResponse:
    state = state_of(request)
    model = state.models.find(unquote(model_id))
    name = unquote(model_id) if unquote(model_id) in model.names else model.name
    return HTTPResponse(orjson.dumps(describe_model(state, model, name)), content_type=JSON_TYPE)


def describe_model(state: ServerState, model: ServedModel, name: str) -> dict[str, Any]:
    """A model as lists show it, under one of its names."""
    info = model.client.info
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "plugserve",
        "root": model.root,
        "parent": model.parent,
        "kind": info.task if info is not None else None,
        "max_model_len": info.max_model_len if info is not None else None,
        "status": _status(state, model),
    }


def _status(state: ServerState, model: ServedModel) -> dict[str, Any]:
    """The state of a model: loaded, loading, unloaded, unloading, failed, or dead while its engine is started again."""
    value = "loaded" if model.state == "up" else model.state
    status: dict[str, Any] = {"value": value}
    news, counts = model.owner.news, model.owner.counts
    if value == "loading":
        status |= {"stage": news.stage or "loading", "progress": round(state.liveness.progress(model.owner.name), 3)}
    elif value in ("failed", "dead"):
        status["reason"] = news.reason
    if value == "failed":
        status["retry_after_s"] = round(max(0.0, news.retry_at_s - time.monotonic()), 1)
    if counts.size_bytes:
        status["memory_bytes"] = counts.size_bytes
    return status
