"""/v1/batches: create, list, retrieve and cancel. A batch belongs to the tenant that created it."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from functools import partial
from typing import Any, Final

import orjson
from sanic import Request, Sanic
from sanic.response import HTTPResponse

from plugserve.core.contracts.requests import Refusal, RequestOutcome, RequestView
from plugserve.core.errors import RequestError
from plugserve.server.api.batches.body import BatchBody
from plugserve.server.api.error_responses import refusal_response
from plugserve.server.api.files.listing import page
from plugserve.server.api.files.routes import service_of
from plugserve.server.api.json_body import JSON_TYPE, json_object, shown, validated
from plugserve.server.batches.batch_store import Batch
from plugserve.server.worker.server_state import Hooks, state_of

_MOST_LISTED: Final = 100


def add_routes(app: Sanic[Any, Any]) -> None:
    app.add_route(create, "/v1/batches", methods=["POST"], name="create_batch")
    app.add_route(batches, "/v1/batches", methods=["GET"], name="batches")
    app.add_route(retrieve, "/v1/batches/<batch_id>", methods=["GET"], name="batch")
    app.add_route(cancel, "/v1/batches/<batch_id>/cancel", methods=["POST"], name="cancel_batch")


async def create(request: Request) -> HTTPResponse:
    """Run a stored file's requests in the background. The sender must be allowed to use the endpoint that they are
    for."""
    service, view = service_of(request), request.ctx.view
    asked = validated(BatchBody, json_object(request, view.body))
    refusal = await _refusal(state_of(request).hooks, view, asked.endpoint)
    if refusal is not None:
        return refusal_response(refusal, request.path)
    file = await asyncio.to_thread(service.files.find, view.owner, asked.input_file_id)
    if file is None or file.purpose != "batch":
        raise RequestError(
            f"input_file_id: no file {shown(asked.input_file_id)} with the purpose batch is stored; upload it to "
            "/v1/files first.",
            status=400 if file is not None else 404,
            code="file_not_found",
            param="input_file_id",
        )
    batch = asked.batch(view)
    await asyncio.to_thread(service.batches.add, batch)
    service.wake()
    return _json(batch.body())


async def _refusal(hooks: Hooks, view: RequestView, endpoint: str) -> Refusal | None:
    """Ask plugins whether the sender may use the endpoint, as for a request of its own that ends at once."""
    asked = replace(view, path=endpoint, body=None, model=None, key=secrets.token_hex(16), state={})
    answer = await hooks.authorize(asked)
    refusal = answer if isinstance(answer, Refusal) else None
    await hooks.request_ended(asked, RequestOutcome(refusal.status if refusal is not None else 200, True))
    return refusal


async def batches(request: Request) -> HTTPResponse:
    """The tenant's batches, the newest first."""
    found = await asyncio.to_thread(service_of(request).batches.batches, request.ctx.view.owner)
    return _json(page(found, Batch.body, request.args, most=_MOST_LISTED))


async def retrieve(request: Request, batch_id: str) -> HTTPResponse:
    return _json((await _found(request, batch_id)).body())


async def cancel(request: Request, batch_id: str) -> HTTPResponse:
    """Stop a batch within seconds; results that are there are kept."""
    service, batch = service_of(request), await _found(request, batch_id)
    if batch.is_ended:
        raise RequestError(f"The batch can't be cancelled: it is {batch.status}.", status=409, code="batch_has_ended")
    await asyncio.to_thread(service.batches.cancel, batch)
    service.wake()
    return _json((await _found(request, batch_id)).body())


async def _found(request: Request, batch_id: str) -> Batch:
    find = partial(service_of(request).batches.find, request.ctx.view.owner, batch_id)
    batch = await asyncio.to_thread(find)
    if batch is None:
        raise RequestError(f"No batch {shown(batch_id)} exists.", status=404, code="batch_not_found")
    return batch


def _json(body: dict[str, Any]) -> HTTPResponse:
    return HTTPResponse(orjson.dumps(body), content_type=JSON_TYPE)
