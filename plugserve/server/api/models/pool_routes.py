"""POST /v1/models/load and /v1/models/unload (also without /v1): load and unload models while the server runs."""

from __future__ import annotations

import time
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field
from sanic import Request, Sanic
from sanic.response import HTTPResponse

from plugserve.core.errors import RequestError
from plugserve.server.api.json_body import JSON_TYPE, json_object, validated
from plugserve.server.api.keep_alive import KeepAlive
from plugserve.server.api.models.routes import describe_model
from plugserve.server.pipeline.time_limit import within
from plugserve.server.worker.model_control import ModelControl
from plugserve.server.worker.served_models import ServedModel
from plugserve.server.worker.server_state import ServerState, state_of


class UnloadModelBody(BaseModel):
    """model is any name of the model."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: Annotated[str, Field(min_length=1, max_length=256)]


class LoadModelBody(UnloadModelBody):
    keep_alive: KeepAlive = None


def add_routes(app: Sanic[Any, Any]) -> None:
    for prefix, version in (("/v1", "_v1"), ("", "")):
        app.add_route(load, f"{prefix}/models/load", methods=["POST"], name=f"load_model{version}")
        app.add_route(unload, f"{prefix}/models/unload", methods=["POST"], name=f"unload_model{version}")


async def load(request: Request) -> HTTPResponse:
    """Answers once the model can serve; 503 with the reason where it can't be loaded."""
    state, asked = state_of(request), validated(LoadModelBody, json_object(request, request.ctx.view.body))
    async with within(state.limits.timeout_s, time.perf_counter()):
        model = await state.find_model(asked.model)
        await _control(state).load(_loadable(model), asked.keep_alive)
    return _answer(state, model)


async def unload(request: Request) -> HTTPResponse:
    """Answers once the model's memory is free: requests that run end first, new ones load it again."""
    state, asked = state_of(request), validated(UnloadModelBody, json_object(request, request.ctx.view.body))
    model = state.models.find(asked.model)
    async with within(state.limits.timeout_s, time.perf_counter()):
        await _control(state).unload(_loadable(model))
    return _answer(state, model)


def _control(state: ServerState) -> ModelControl:
    if state.model_control is None:
        raise RequestError("The models of this server can't be loaded and unloaded.", code="no_model_pool")
    return state.model_control


def _loadable(model: ServedModel) -> ServedModel:
    if model.owner is not model:
        raise RequestError(
            f"{model.name!r} is a LoRA adapter of {model.parent!r}; load and unload that, or use "
            "/v1/unload_lora_adapter.",
            param="model",
        )
    return model


def _answer(state: ServerState, model: ServedModel) -> HTTPResponse:
    body = {"success": True, "model": describe_model(state, model, model.name)}
    return HTTPResponse(orjson.dumps(body), content_type=JSON_TYPE)
