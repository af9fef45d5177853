"""What a router reads of a request to find its upstream."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import orjson
from sanic import Request

from plugserve.core.errors import RequestError
from plugserve.server.api.json_body import read_json
from plugserve.server.api.json_size import check_size
from plugserve.server.router.prefix_blocks import prefix_blocks
from plugserve.server.router.router_state import RouterState
from plugserve.server.router.stored_ids import StoredId, asked_id

_MODEL_NAMES: Final = (b'name="model"', b"name=model")
_MODEL_PART: Final = re.compile(rb"[^\r\n]{0,200}\r\n(?:[^\r\n]{1,200}\r\n){0,8}\r\n([^\r\n]{1,256})\r\n")
_DOTS: Final = re.compile(r"/(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Asked:
    """target: path and query. body: the JSON object, None where there is none. stored_id: of what an upstream has
    stored. blocks: of the prompt's beginning, where the policy uses them."""

    target: str
    body: dict[str, Any] | None
    model: str | None
    stored_id: StoredId | None
    blocks: list[int]


async def read_asked(request: Request, state: RouterState) -> Asked:
    """Raises RequestError for a path that could leave an upstream's own, and for a body with too many values. A body
    that can't be read is sent on: the upstream explains what is wrong with it."""
    path = request.path
    if _DOTS.search(path):
        raise RequestError("The path must not contain the segments . and ..")
    body = await _json_body(request, state)
    model = _model(request, body)
    blocks: list[int] = []
    if state.policy.uses_prefixes and request.method == "POST":
        blocks = prefix_blocks(path, model or "", body)
    return Asked(
        target=path + (f"?{request.query_string}" if request.query_string else ""),
        body=body,
        model=model,
        stored_id=asked_id(path, body),
        blocks=blocks,
    )


async def _json_body(request: Request, state: RouterState) -> dict[str, Any] | None:
    if not request.body or "json" not in (request.headers.get("content-type") or "").lower():
        return None
    await check_size(request.body, state.limits.max_body_values, state.in_pool)
    try:
        body = read_json(request.body)
    except orjson.JSONDecodeError:
        return None
    return body if isinstance(body, dict) else None


def _model(request: Request, body: dict[str, Any] | None) -> str | None:
    """The model that the body (JSON or a form) or the query names."""
    if body is not None:
        name = body.get("model")
        return name if isinstance(name, str) and name else None
    if "multipart/form-data" in (request.headers.get("content-type") or "").lower():
        return _model_of_form(request.body)
    return request.args.get("model") or None


def _model_of_form(body: bytes) -> str | None:
    """The value of a form's first part that is named model. Bounded work: a body is up to 32 MiB."""
    for name in _MODEL_NAMES:
        at = body.find(name)
        found = _MODEL_PART.match(body, at + len(name)) if at >= 0 else None
        if found is not None:
            return found[1].decode(errors="replace").strip() or None
    return None
