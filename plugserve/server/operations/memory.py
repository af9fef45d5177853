"""GET /v1/memory: what each engine was predicted to take, and what it uses now."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from msgspec import to_builtins
from sanic import Request, Sanic
from sanic.response import HTTPResponse

from plugserve.core.memory.ledger_text import as_dict
from plugserve.server.api.json_body import JSON_TYPE
from plugserve.server.worker.served_models import ServedModel
from plugserve.server.worker.server_state import state_of


def add_routes(app: Sanic[Any, Any]) -> None:
    app.add_route(memory, "/v1/memory", methods=["GET"])


async def memory(request: Request) -> HTTPResponse:
    """One entry a model, with a fresh snapshot of its engine."""
    models = await asyncio.gather(*(_describe(model) for model in state_of(request).models))
    return HTTPResponse(orjson.dumps({"object": "list", "data": models}), content_type=JSON_TYPE)


async def _describe(model: ServedModel) -> dict[str, Any]:
    """predicted is null for runners that predict nothing, and both are while there is no engine."""
    info, state = model.client.info, model.client.state
    body: dict[str, Any] = {"id": model.name, "object": "memory", "state": state, "predicted": None, "actual": None}
    if info is None or state != "up":
        return body
    stats = await model.client.stats()
    used_blocks = stats.num_blocks - stats.num_free_blocks
    actual = {
        **to_builtins(stats.memory),
        "weight_bytes": info.weight_bytes,
        "offloaded_weight_bytes": info.offloaded_weight_bytes,
        "kv_cache_bytes": info.kv_cache_bytes,
        "kv_used_bytes": info.kv_cache_bytes * used_blocks // max(1, stats.num_blocks),
        "num_kv_tokens": info.num_blocks * info.block_size,
        "max_model_len": info.max_model_len,
    }
    return body | {"predicted": None if info.memory is None else as_dict(info.memory), "actual": actual}
