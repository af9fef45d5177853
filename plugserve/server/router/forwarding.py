"""Sends one request to an upstream and passes its answer on: the choice, further tries, the stream, its failures."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final

from sanic import Request
from sanic.exceptions import RequestCancelled
from sanic.response import BaseHTTPResponse, HTTPResponse

from plugserve.core.errors import (
    EngineError,
    EngineUnavailableError,
    RequestTimeoutError,
    UpstreamError,
)
from plugserve.server.router.asked import Asked
from plugserve.server.router.event_boundary import EventBoundary
from plugserve.server.router.fleet import readiest
from plugserve.server.router.policies import Choice
from plugserve.server.router.proxy_fields import answer_headers, key_fields, request_fields
from plugserve.server.router.router_state import RouterState
from plugserve.server.router.stored_ids import IdReader
from plugserve.server.router.stream_failure import failure_event
from plugserve.server.router.traced_try import TracedTry
from plugserve.server.router.upstream import Upstream
from plugserve.server.router.upstream_client import ConnectFailed, NotTaken, UpstreamAnswer
from plugserve.server.router.upstream_connection import UpstreamLost, UpstreamSilent

logger = logging.getLogger(__name__)

_SMALL_BYTES: Final = 65536  # an answer of a known length up to here is passed on in one piece
_BUSY: Final = (502, 503)
_OCTETS: Final = "application/octet-stream"


class Forwarding:
    """The life of one request in the router."""

    def __init__(self, request: Request, asked: Asked, state: RouterState) -> None:
        self._request = request
        self._asked = asked
        self._state = state
        self._owner = request.ctx.owner
        self._began_s = time.perf_counter()
        timeout_s = state.limits.timeout_s
        self._deadline_s = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        self._fields = request_fields(request, is_decoded="content-encoding" in request.headers)
        self._num_tries = 0

    async def run(self, candidates: Sequence[Upstream]) -> HTTPResponse | None:
        """Answer the request by one of candidates; None when the answer has been streamed.

        Raises EngineError for failures before the answer began. Those that an upstream can't have taken up are tried
        at another one first: no connection, or a 502 or 503 with Retry-After.
        """
        left = list(candidates)
        refusal: HTTPResponse | None = None
        while left:
            choice = self._state.policy.choose(readiest(left, self._asked.model), self._asked.blocks)
            left.remove(choice.upstream)
            choice.upstream.note_chosen(self._asked.model)
            if self._num_tries == 0:
                self._state.metrics.chosen(choice, len(self._asked.blocks))
            self._num_tries += 1
            try:
                with choice.upstream.in_flight(), TracedTry(self._request, choice, self._num_tries) as traced:
                    answer = await self._send(choice.upstream, traced)
                    try:
                        if answer.status in _BUSY and answer.field(b"retry-after") is not None:
                            refusal = await self._note_refusal(choice.upstream, answer, left)
                            continue
                        return await self._pass_on(choice, answer)
                    finally:
                        answer.close()
            except NotTaken as failure:
                self._note_not_taken(choice.upstream, failure, left)
        if refusal is not None:
            return refusal
        raise EngineUnavailableError("No server could be reached for this request; try again in a moment.")

    # ---- one try

    async def _send(self, upstream: Upstream, traced: TracedTry) -> UpstreamAnswer:
        """Raises NotTaken where another upstream may be tried, else EngineError."""
        state, request = self._state, self._request
        keys = key_fields(request, upstream.address, has_own_keys=state.access.has_keys)
        sent_s = time.perf_counter()
        try:
            async with asyncio.timeout_at(self._deadline_s):
                answer = await upstream.client.send(
                    request.method, self._asked.target, [*traced.replacing(self._fields), *keys], request.body or b""
                )
                traced.status = answer.status
        except TimeoutError:
            raise _timed_out() from None
        except UpstreamLost as failure:
            state.metrics.failures.labels(upstream.name, "lost").inc()
            raise self._lost(upstream, failure) from None
        state.metrics.seconds_to_head.labels(upstream.name).observe(time.perf_counter() - sent_s)
        return answer

    def _note_not_taken(self, upstream: Upstream, failure: NotTaken, left: Sequence[Upstream]) -> None:
        """Note the upstream's state. Raises EngineUnavailableError when this process is at fault."""
        now_s = asyncio.get_running_loop().time()
        self._state.metrics.failures.labels(upstream.name, "connect").inc()
        if not isinstance(failure, ConnectFailed):
            upstream.note_lost(str(failure), now_s, is_last=self._state.fleet.num_up <= 1)
        elif not failure.is_own_fault:
            upstream.note_down(str(failure), now_s)
        else:
            logger.error("no connection to upstream %s: %s", upstream.name, failure)
            raise EngineUnavailableError("The router has no connection left for this request; try again in a moment.")
        if left:
            self._state.metrics.retries.labels("connect").inc()

    async def _note_refusal(self, upstream: Upstream, answer: UpstreamAnswer, left: Sequence[Upstream]) -> HTTPResponse:
        """The upstream can't take the request now. Its answer is the client's if no other one can."""
        self._state.metrics.failures.labels(upstream.name, "busy").inc()
        upstream.note_busy()
        try:
            response = await self._whole(upstream, answer)
        except UpstreamLost as failure:
            raise self._lost(upstream, failure) from None
        if left:
            self._state.metrics.retries.labels("busy").inc()
        return response

    def _lost(self, upstream: Upstream, failure: UpstreamLost) -> EngineError:
        """Note a connection that broke, and make the client's error. The upstream may have done the work, so the
        request isn't sent to another one."""
        now_s = asyncio.get_running_loop().time()
        upstream.note_lost(str(failure), now_s, is_last=self._state.fleet.num_up <= 1)
        logger.warning("request id=%s: upstream %s failed: %s", self._request.ctx.id, upstream.name, failure)
        if isinstance(failure, UpstreamSilent):
            return RequestTimeoutError(f"The server of this request did not answer: {failure}.")
        return UpstreamError(f"The server of this request failed: {failure}.")

    # ---- the answer

    async def _pass_on(self, choice: Choice, answer: UpstreamAnswer) -> HTTPResponse | None:
        upstream = choice.upstream
        upstream.note_answer()
        self._state.metrics.answers.labels(upstream.name, str(answer.status)).inc()
        length = answer.field(b"content-length")
        is_small = self._request.method == "HEAD" or (length is not None and int(length) <= _SMALL_BYTES)
        try:
            response = await self._whole(upstream, answer) if is_small else None
        except UpstreamLost as failure:
            self._state.metrics.failures.labels(upstream.name, "broken").inc()
            raise self._lost(upstream, failure) from None
        if response is None:
            await self._stream(upstream, answer)
        self._log(choice, answer.status)
        return response

    async def _whole(self, upstream: Upstream, answer: UpstreamAnswer) -> HTTPResponse:
        headers = answer_headers(answer.fields, upstream.name, drops_cors=self._state.access.has_origins)
        try:
            async with asyncio.timeout_at(self._deadline_s):
                body = await answer.read(_SMALL_BYTES)
        except TimeoutError:
            raise _timed_out() from None
        self._read_id(IdReader(self._request.method, self._request.path, answer.status), upstream, body)
        return HTTPResponse(body, answer.status, headers, headers.get("content-type", _OCTETS))

    async def _stream(self, upstream: Upstream, answer: UpstreamAnswer) -> None:
        headers = answer_headers(answer.fields, upstream.name, drops_cors=self._state.access.has_origins)
        kind = headers.get("content-type", _OCTETS)
        is_events = kind.startswith("text/event-stream") and "content-encoding" not in headers
        response: BaseHTTPResponse = await self._request.respond(
            status=answer.status, headers=headers, content_type=kind
        )
        await response.send(b"", end_stream=False)
        boundary = EventBoundary() if is_events else None
        reader = IdReader(self._request.method, self._request.path, answer.status)
        try:
            async with asyncio.timeout_at(self._deadline_s):
                async for piece in answer.pieces():
                    if reader.is_reading:
                        self._read_id(reader, upstream, piece)
                    whole = boundary.take(piece) if boundary is not None else piece
                    if whole:
                        await response.send(whole)
            if boundary is not None and (rest := boundary.rest()):
                await response.send(rest)
        except (UpstreamLost, TimeoutError) as failure:
            await self._break_off(upstream, failure, response, boundary)
        await response.eof()  # type: ignore[attr-defined]

    async def _break_off(
        self,
        upstream: Upstream,
        failure: UpstreamLost | TimeoutError,
        response: BaseHTTPResponse,
        boundary: EventBoundary | None,
    ) -> None:
        """End an answer that breaks off: events by an error event, anything else by closing the connection, which
        shows the client that it isn't whole."""
        self._state.metrics.failures.labels(upstream.name, "broken").inc()
        error = _timed_out() if isinstance(failure, TimeoutError) else self._lost(upstream, failure)
        if boundary is None:
            self._request.stream.protocol.drop()  # type: ignore[union-attr]
            raise RequestCancelled
        await response.send(failure_event(self._request.path, error, boundary.next_number))

    def _read_id(self, reader: IdReader, upstream: Upstream, data: bytes) -> None:
        for id in reader.read(data) if reader.is_reading else ():
            self._state.stored_ids.note(self._owner, id, upstream.name)

    def _log(self, choice: Choice, status: int) -> None:
        if self._state.logs_requests:
            logger.info(
                "request id=%s path=%s model=%s upstream=%s choice=%s tries=%d status=%d total_ms=%.0f",
                self._request.ctx.id,
                self._request.path,
                self._asked.model or "-",
                choice.upstream.name,
                choice.reason,
                self._num_tries,
                status,
                (time.perf_counter() - self._began_s) * 1e3,
            )


def _timed_out() -> RequestTimeoutError:
    """The error of a request that took longer than --request-timeout."""
    return RequestTimeoutError("The request took longer than this server allows.")
