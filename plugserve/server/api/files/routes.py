"""/v1/files: upload, list, retrieve, download and delete. A file belongs to the tenant that uploaded it."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any, Final

import orjson
from sanic import Request, Sanic
from sanic.response import HTTPResponse

from plugserve.core.errors import RequestError
from plugserve.server.api.files.form import Part, read_form
from plugserve.server.api.files.listing import page
from plugserve.server.api.json_body import JSON_TYPE, shown
from plugserve.server.batches.file_store import StoredFile, new_id
from plugserve.server.batches.service import BatchService
from plugserve.server.worker.server_state import state_of

_MOST_LISTED: Final = 10_000
_LONGEST_NAME: Final = 256
_PIECE_BYTES: Final = 256 * 1024
_LEAST_LIFE_S, _LONGEST_LIFE_S = 3600, 30 * 24 * 3600


def add_routes(app: Sanic[Any, Any]) -> None:
    app.add_route(upload, "/v1/files", methods=["POST"], name="upload_file")
    app.add_route(files, "/v1/files", methods=["GET"], name="files")
    app.add_route(retrieve, "/v1/files/<file_id>", methods=["GET"], name="file")
    app.add_route(content, "/v1/files/<file_id>/content", methods=["GET"], name="file_content")
    app.add_route(delete, "/v1/files/<file_id>", methods=["DELETE"], name="delete_file")


async def upload(request: Request) -> HTTPResponse:
    """Store the form's file."""
    service = service_of(request)
    form = await asyncio.to_thread(read_form, request.headers.get("content-type") or "", request.body)
    sent, purpose = form.get("file"), form.get("purpose")
    if sent is None or sent.filename is None:
        raise RequestError("file: this field is required, as a file.", code="missing", param="file")
    if purpose is None or purpose.text != "batch":
        got = "none" if purpose is None else shown(purpose.text)
        raise RequestError(f"purpose: must be batch, the only one of this server, got {got}", param="purpose")
    now = int(time.time())
    file = StoredFile(
        id=new_id("file-"),
        num_bytes=len(sent.content),
        created_at=now,
        filename=sent.filename[:_LONGEST_NAME],
        purpose="batch",
        expires_at=_expiry(form, now),
    )
    await asyncio.to_thread(service.files.add, request.ctx.view.owner, sent.content, file)
    return _json(file.body())


def _expiry(form: dict[str, Part], now: int) -> int | None:
    """expires_after[anchor] and expires_after[seconds]."""
    seconds = form.get("expires_after[seconds]")
    if seconds is None:
        return None
    anchor = form.get("expires_after[anchor]")
    if anchor is None or anchor.text != "created_at":
        raise RequestError("expires_after.anchor: must be created_at", param="expires_after")
    text = seconds.text
    if not text.isdecimal() or not _LEAST_LIFE_S <= int(text) <= _LONGEST_LIFE_S:
        raise RequestError(
            f"expires_after.seconds: must be from {_LEAST_LIFE_S} to {_LONGEST_LIFE_S}, got {shown(text)}",
            param="expires_after",
        )
    return now + int(text)


async def files(request: Request) -> HTTPResponse:
    """The tenant's files, the newest first."""
    found = await asyncio.to_thread(service_of(request).files.files, request.ctx.view.owner)
    if (purpose := request.args.get("purpose")) is not None:
        found = [file for file in found if file.purpose == purpose]
    return _json(page(found, StoredFile.body, request.args, most=_MOST_LISTED))


async def retrieve(request: Request, file_id: str) -> HTTPResponse:
    """A file's facts."""
    return _json((await _found(request, file_id)).body())


async def content(request: Request, file_id: str) -> None:
    """A file's bytes, in pieces: no file is held in memory."""
    file = await _found(request, file_id)
    path = service_of(request).files.path(request.ctx.view.owner, file.id)
    try:
        source = await asyncio.to_thread(open, path, "rb")
    except FileNotFoundError:
        raise _not_found(file_id) from None
    headers = {"Content-Length": str(file.num_bytes)}
    try:
        response: Any = await request.respond(headers=headers, content_type="application/octet-stream")
        while piece := await asyncio.to_thread(source.read, _PIECE_BYTES):
            await response.send(piece)
        await response.eof()
    finally:
        source.close()


async def delete(request: Request, file_id: str) -> HTTPResponse:
    """Delete a file, unless a batch still reads it."""
    service, owner = service_of(request), request.ctx.view.owner
    running = await asyncio.to_thread(service.batches.batches, owner)
    user = next((batch for batch in running if batch.input_file_id == file_id and not batch.is_ended), None)
    if user is not None:
        raise RequestError(
            f"The file is read by batch {user.id}; cancel that first.", status=409, code="file_in_use", param="file_id"
        )
    if not await asyncio.to_thread(partial(service.files.delete, owner, file_id)):
        raise _not_found(file_id)
    return _json({"id": file_id, "object": "file", "deleted": True})


def service_of(request: Request) -> BatchService:
    """Raises RequestError (404) where this server stores no files."""
    service = state_of(request).batches
    if service is None:
        raise RequestError("This server stores no files.", status=404, code="unsupported_endpoint")
    return service


async def _found(request: Request, file_id: str) -> StoredFile:
    file = await asyncio.to_thread(service_of(request).files.find, request.ctx.view.owner, file_id)
    if file is None:
        raise _not_found(file_id)
    return file


def _not_found(file_id: str) -> RequestError:
    return RequestError(f"No file {shown(file_id)} is stored.", status=404, code="file_not_found")


def _json(body: dict[str, Any]) -> HTTPResponse:
    return HTTPResponse(orjson.dumps(body), content_type=JSON_TYPE)
