"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter: change the adapters while the server runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from sanic import Request, Sanic
from sanic.response import HTTPResponse

from plugserve.core.errors import RequestError
from plugserve.server.api.json_body import JSON_TYPE, json_object, validated
from plugserve.server.api.models.lora_body import LoadLoraBody, UnloadLoraBody
from plugserve.server.worker.adapter_models import ControlAdapters
from plugserve.server.worker.server_state import state_of


def add_routes(app: Sanic[Any, Any]) -> None:
    app.add_route(load, "/v1/load_lora_adapter", methods=["POST"], name="load_lora_adapter")
    app.add_route(unload, "/v1/unload_lora_adapter", methods=["POST"], name="unload_lora_adapter")


async def load(request: Request) -> HTTPResponse:
    """Answers once every worker serves the adapter."""
    adapters, body = _adapters(request), _body(request)
    asked = validated(LoadLoraBody, body)
    await adapters.load(
        asked.lora_name,
        asked.lora_path,
        model=asked.base_model_name or "",
        is_replacement=bool(asked.load_inplace),
    )
    return _success(f"Success: LoRA adapter {asked.lora_name!r} added successfully.")


async def unload(request: Request) -> HTTPResponse:
    """Answers once no worker accepts requests for the adapter; running ones continue."""
    adapters, body = _adapters(request), _body(request)
    asked = validated(UnloadLoraBody, body)
    await adapters.unload(asked.lora_name)
    return _success(f"Success: LoRA adapter {asked.lora_name!r} removed successfully.")


def _adapters(request: Request) -> ControlAdapters:
    adapters = state_of(request).adapters
    if adapters is None:
        raise RequestError(
            "LoRA is not active on this server; start it with --enable-lora to load and unload adapters.",
            code="lora_not_active",
        )
    return adapters


def _body(request: Request) -> Mapping[str, Any]:
    return json_object(request, request.ctx.view.body)


def _success(message: str) -> HTTPResponse:
    return HTTPResponse(orjson.dumps({"status": "ok", "message": message}), content_type=JSON_TYPE)
