"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter. No plugin serves adapters yet, and the routes say so."""

from __future__ import annotations

from typing import Any

from sanic import Request, Sanic
from sanic.response import HTTPResponse

from plugserve.core.errors import RequestError


def add_routes(app: Sanic[Any, Any]) -> None:
    app.add_route(refuse, "/v1/load_lora_adapter", methods=["POST"], name="load_lora_adapter")
    app.add_route(refuse, "/v1/unload_lora_adapter", methods=["POST"], name="unload_lora_adapter")


async def refuse(request: Request) -> HTTPResponse:
    """Always raises RequestError (400)."""
    raise RequestError(
        "LoRA is not active on this server: adapters will be loaded and unloaded by the lora plugin, which this "
        "version does not have yet; it will be activated with --enable-lora.",
        code="lora_not_active",
    )
