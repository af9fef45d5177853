"""Requests that change what upstreams serve, such as loading a LoRA adapter: every upstream of the model gets them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import orjson
from sanic import Request
from sanic.response import HTTPResponse

from plugserve.core.errors import EngineUnavailableError
from plugserve.server.api.error_responses import error_object
from plugserve.server.api.json_body import JSON_TYPE
from plugserve.server.router.asked import Asked
from plugserve.server.router.fleet import Fleet
from plugserve.server.router.proxy_fields import answer_headers, key_fields, request_fields
from plugserve.server.router.router_state import RouterState
from plugserve.server.router.upstream import Upstream
from plugserve.server.router.upstream_client import NotTaken
from plugserve.server.router.upstream_connection import UpstreamLost

_LOAD_ADAPTER: Final = "/v1/load_lora_adapter"
_MODEL_FIELDS: Final[Mapping[str, str]] = {
    _LOAD_ADAPTER: "base_model_name",
    "/v1/unload_lora_adapter": "lora_name",
    "/v1/models/load": "model",
    "/v1/models/unload": "model",
    "/models/load": "model",
    "/models/unload": "model",
}
"""The field of the body that says which upstreams a request is about, by path."""
_MOST_BYTES: Final = 2**20
_LONGEST_SHOWN: Final = 500


def is_for_all(request: Request) -> bool:
    return request.method == "POST" and request.path.rstrip("/") in _MODEL_FIELDS


async def send_to_all(request: Request, asked: Asked, state: RouterState) -> HTTPResponse:
    """Send the request to every upstream that it is about, and ask them for their models before answering.

    Answers what the first one answered; an error that names those that failed, if any did.
    """
    targets = _targets(request.path.rstrip("/"), asked.body or {}, state.fleet)
    if not targets:
        raise EngineUnavailableError("No server that could serve this request is up; try again in a moment.")
    answers = await asyncio.gather(*(_answer_of(request, asked, state, target) for target in targets))
    await state.ask_upstreams(targets)
    failed = [(target, answer) for target, answer in zip(targets, answers, strict=True) if answer.status >= 400]
    if not failed or len(targets) == 1:
        return answers[0]
    status = failed[0][1].status
    reasons = "; ".join(f"{target.name}: {_message(answer)}" for target, answer in failed)
    message = f"{len(failed)} of {len(targets)} servers failed: {reasons}"
    return HTTPResponse(orjson.dumps(error_object(status, message)), status, content_type=JSON_TYPE)


def _targets(path: str, body: Mapping[str, Any], fleet: Fleet) -> list[Upstream]:
    """The upstreams that serve the named model. An adapter that some have already is only loaded into the others, so
    that a load which failed on some can be repeated."""
    name = body.get(_MODEL_FIELDS[path])
    targets = fleet.all_that_serve([name] if isinstance(name, str) else [])
    if path == _LOAD_ADAPTER and not body.get("load_inplace"):
        adapter = body.get("lora_name")
        without = [target for target in targets if not isinstance(adapter, str) or adapter not in target.models]
        return without or targets
    return targets


async def _answer_of(request: Request, asked: Asked, state: RouterState, target: Upstream) -> HTTPResponse:
    keys = key_fields(request, target.address, has_own_keys=state.access.has_keys)
    fields = [*request_fields(request, is_decoded="content-encoding" in request.headers), *keys]
    try:
        with target.in_flight():
            answer = await target.client.send(request.method, asked.target, fields, request.body or b"")
            try:
                body = await answer.read(_MOST_BYTES)
            finally:
                answer.close()
    except (NotTaken, UpstreamLost) as failure:
        return HTTPResponse(orjson.dumps(error_object(502, f"{failure}")), 502, content_type=JSON_TYPE)
    headers = answer_headers(answer.fields, target.name, drops_cors=state.access.has_origins)
    return HTTPResponse(body, answer.status, headers, headers.get("content-type", JSON_TYPE))


def _message(answer: HTTPResponse) -> str:
    """The message of an error in OpenAI's shape, else the beginning of the body."""
    body = answer.body or b""
    try:
        return str(orjson.loads(body)["error"]["message"])[:_LONGEST_SHOWN]
    except (orjson.JSONDecodeError, TypeError, KeyError):
        return body[:_LONGEST_SHOWN].decode(errors="replace") or f"status {answer.status}"
