"""POST /v1/responses, and GET and DELETE of stored ones."""

from __future__ import annotations

from typing import Any

import orjson
from sanic import Request, Sanic
from sanic.response import HTTPResponse

from plugserve.core.errors import RequestError
from plugserve.server.api.json_body import JSON_TYPE, shown
from plugserve.server.api.responses.response_store import stored_id
from plugserve.server.api.responses.responses_api import ResponsesApi
from plugserve.server.pipeline.exchange import generating
from plugserve.server.worker.server_state import state_of


def add_routes(app: Sanic[Any, Any]) -> None:
    api = ResponsesApi(app.ctx.state.responses)
    app.add_route(generating(api), "/v1/responses", methods=["POST"], name="responses")
    app.add_route(compact, "/v1/responses/compact", methods=["POST"], name="compact_response", ctx_is_undocumented=True)
    app.add_route(retrieve, "/v1/responses/<response_id>", methods=["GET"], name="response")
    app.add_route(delete, "/v1/responses/<response_id>", methods=["DELETE"], name="delete_response")


async def compact(request: Request) -> HTTPResponse:
    """Not supported; without this route the path would match that of a stored response and answer 405."""
    raise RequestError("This server doesn't compact conversations.", status=404, code="unsupported_endpoint")


async def retrieve(request: Request, response_id: str) -> HTTPResponse:
    """A stored response as it was answered."""
    record = await state_of(request).responses.find(_stored_id(request, response_id))
    if record is None:
        raise _not_found(response_id)
    return HTTPResponse(orjson.dumps(orjson.loads(record)["response"]), content_type=JSON_TYPE)


async def delete(request: Request, response_id: str) -> HTTPResponse:
    """Delete a stored response. Conversations that continued from it keep their own copy."""
    if not await state_of(request).responses.forget(_stored_id(request, response_id)):
        raise _not_found(response_id)
    answer = {"id": response_id, "object": "response", "deleted": True}
    return HTTPResponse(orjson.dumps(answer), content_type=JSON_TYPE)


def _stored_id(request: Request, response_id: str) -> str:
    return stored_id(request.ctx.view.owner, response_id)


def _not_found(response_id: str) -> RequestError:
    return RequestError(f"No response {shown(response_id)} is stored.", status=404, code="response_not_found")
