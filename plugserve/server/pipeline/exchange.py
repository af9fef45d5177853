"""Serves one generating request over HTTP, from its body to the last byte of its answer."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, Final

from sanic import Request
from sanic.response import BaseHTTPResponse, HTTPResponse

from plugserve.core.contracts.requests import RequestView
from plugserve.server.api.json_body import JSON_TYPE, json_object
from plugserve.server.pipeline.generation import Generation
from plugserve.server.pipeline.generation_api import GenerationApi
from plugserve.server.pipeline.served_request import MAX_NAMES_SHOWN, Prepared, ServedRequest
from plugserve.server.pipeline.server_timing import server_timing
from plugserve.server.worker.http.strict_app import trace_of
from plugserve.server.worker.server_state import ServerState, state_of

_STREAM_HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_UNREAD_S: Final = 0.01  # that a write waits for its client, at least
_NOT_IN_HEADERS: Final = re.compile(r"[^\x20-\x7e]")

Handler = Callable[..., Coroutine[Any, Any, HTTPResponse | None]]


def generating(api: GenerationApi) -> Handler:
    """The handler of a route that serves api."""

    async def handle(request: Request) -> HTTPResponse | None:
        return await Exchange(state_of(request), api, request).serve()

    return handle


class Exchange:
    """Serve once."""

    def __init__(self, state: ServerState, api: GenerationApi, request: Request) -> None:
        self._request = request
        self._state = state
        self._view: RequestView = request.ctx.view
        account = state.access.sender_of(request).account
        self._served = ServedRequest(state, api, self._view, account, trace_of(request))

    async def serve(self) -> HTTPResponse | None:
        """The plain response, or None after a stream. Raises exceptions that become error responses."""
        try:
            async with self._served.life():
                prepared = await self._served.prepare(self._read)
                if prepared.body.request.stream:
                    self._served.error = await self._stream(prepared)
                    return None
                data = await self._served.plain(prepared)
                headers = self._headers(prepared.generation)
                return HTTPResponse(data, headers=headers, content_type=JSON_TYPE)
        finally:
            self._request.ctx.ending = self._served.ending

    def _read(self) -> Mapping[str, Any]:
        return json_object(self._request, self._view.body)

    def _headers(self, generation: Generation) -> dict[str, str]:
        headers = {"Server-Timing": server_timing(generation)}
        ignored = self._served.ignored_fields
        if not ignored:
            return headers
        names = ",".join(ignored[:MAX_NAMES_SHOWN])[:500]
        return {**headers, "x-plugserve-ignored-fields": _NOT_IN_HEADERS.sub("?", names)}

    async def _stream(self, prepared: Prepared) -> Exception | None:
        """Send events as they come. Raises before the first one; afterwards an error becomes an event and is
        returned."""
        generation = prepared.generation
        writer = prepared.body.stream(prepared.facts, generation)
        response: BaseHTTPResponse | None = None
        error: Exception | None = None
        unread_s = 0.0
        try:
            async with aclosing(generation.batches()) as batches:
                async for batch in batches:
                    data = writer.events(batch)
                    if generation.is_finished:
                        data += await writer.ending(generation.usage)
                    if response is None:
                        response = await self._open_stream(generation)
                    if data:
                        sent_s = time.perf_counter()
                        await response.send(data)
                        waited_s = time.perf_counter() - sent_s
                        unread_s += waited_s if waited_s > _UNREAD_S else 0.0
        except Exception as failure:
            if response is None:
                raise
            error = failure
            await response.send(writer.failure(failure))
        finally:
            self._state.live.own.note_unread(self._view.id, unread_s)
        assert response is not None
        await response.eof()  # type: ignore[attr-defined]
        return error

    async def _open_stream(self, generation: Generation) -> BaseHTTPResponse:
        headers = {**_STREAM_HEADERS, **self._headers(generation)}
        response: BaseHTTPResponse = await self._request.respond(headers=headers, content_type="text/event-stream")
        return response
