"""GET /v1/models and /v1/models/{id}; ids may hold slashes."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import orjson
from sanic import Request, Sanic
from sanic.response import HTTPResponse

from plugserve.server.api.json_body import JSON_TYPE
from plugserve.server.worker.served_models import ServedModel
from plugserve.server.worker.server_state import state_of


def add_routes(app: Sanic[Any, Any]) -> None:
    app.add_route(list_models, "/v1/models", methods=["GET"])
    app.add_route(one_model, "/v1/models/<model_id:path>", methods=["GET"])


async def list_models(request: Request) -> HTTPResponse:
    served = state_of(request).models
    models = [_describe(model, name) for model in (*served, *served.adapters.values()) for name in model.names]
    return HTTPResponse(orjson.dumps({"object": "list", "data": models}), content_type=JSON_TYPE)


async def one_model(request: Request, model_id: str) -> HTTPResponse:
    model = state_of(request).models.find(unquote(model_id))
    name = unquote(model_id) if unquote(model_id) in model.names else model.name
    return HTTPResponse(orjson.dumps(_describe(model, name)), content_type=JSON_TYPE)


def _describe(model: ServedModel, name: str) -> dict[str, Any]:
    info = model.client.info
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "plugserve",
        "root": model.root,
        "parent": model.parent,
        "max_model_len": info.max_model_len if info is not None else None,
    }
