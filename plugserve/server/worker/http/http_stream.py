"""The requests and answers of one connection, one after the other (HTTP/1.1 and 1.0).

Sanic's Http with its own reading of heads and bodies, total deadlines, and bodies that are refused before they are
read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from asyncio import CancelledError
from typing import TYPE_CHECKING, Any, Final

from sanic.compat import Header
from sanic.exceptions import BadURL, RequestCancelled, ServerError, ServiceUnavailable
from sanic.headers import format_http1_response
from sanic.helpers import has_message_body
from sanic.http import Http, Stage
from sanic.http.http1 import HTTP_CONTINUE

from plugserve.server.worker.http.body_budget import BodyShare
from plugserve.server.worker.http.chunked_body import ChunkedBody
from plugserve.server.worker.http.request_head import HttpError, RequestHead, find_head_end, parse_head
from plugserve.server.worker.http.root_path import without_root_path

if TYPE_CHECKING:
    from plugserve.server.worker.http.connection import HttpConnection

logger = logging.getLogger(__name__)

_LONGEST_SHOWN: Final = 160  # bytes of a malformed request in its log line
_DISCARDED_BYTES: Final = 128 * 2**20
_TIMED_OUT: Final = 408
_LAST_MOMENT_S: Final = 0.5  # for the answer to a client that was too slow


class HttpStream(Http):
    """Replaces Sanic's Http: reads requests, calls the app, and writes answers."""

    __slots__ = ("_body_deadline_s", "_chunks", "_head", "_linger_s", "_share", "_shown")

    protocol: HttpConnection
    request: Any
    request_body: Any
    request_bytes: Any
    request_bytes_left: Any
    response: Any
    response_func: Any

    def __init__(self, protocol: HttpConnection) -> None:
        super().__init__(protocol)  # type: ignore[no-untyped-call]
        self._share: BodyShare | None = None

    def init_for_request(self) -> None:
        super().init_for_request()  # type: ignore[no-untyped-call]
        self._head: RequestHead | None = None
        self._chunks: ChunkedBody | None = None
        self._body_deadline_s: float | None = None
        self._linger_s = 0.0  # how long bytes after a malformed request are read and dropped
        self._shown = b""

    # ---- one request after the other

    async def http1(self) -> None:
        """Serve requests until the connection closes or must be closed."""
        while self.keep_alive and self.stage is Stage.IDLE:
            self.init_for_request()
            if not await self._wait_for_request():
                return
            self.stage = Stage.REQUEST
            try:
                await self._serve_one()
            finally:
                if self._share is not None:
                    self._share.close()
                    self._share = None
            if self.request_body:
                self._linger_s = self.protocol.limits.discard_s
            if self._linger_s and self.protocol.is_open:
                await self._discard()
            if self.request:
                self.request.stream = None
                if self.response:
                    self.response.stream = None

    async def _serve_one(self) -> None:
        try:
            self.response_func = self.http1_response_header
            await self.http1_request_header()
            self.stage = Stage.HANDLER
            self.request.conn_info = self.protocol.conn_info
            await self.protocol.request_handler(self.request)
            if self.stage is Stage.HANDLER and not self.upgrade_websocket:
                raise ServerError("Handler produced no response")
            if self.stage is Stage.RESPONSE:
                await self.response.send(end_stream=True)
        except CancelledError as error:
            self.keep_alive = False
            if not self.protocol.is_open:
                return
            await self.error_response(self.exception or error)
        except HttpError as error:
            self._linger_s = _LAST_MOMENT_S if error.status == _TIMED_OUT else self.protocol.limits.discard_s
            await self.error_response(error)
        except Exception as error:
            await self.error_response(error)

    async def _wait_for_request(self) -> bool:
        """Wait for the next request; False when none begins in time."""
        connection = self.protocol
        connection.note_waiting()
        if self.recv_buffer:
            return True
        limits = connection.limits
        is_first = not connection.state.get("requests_count")
        try:
            async with asyncio.timeout(limits.header_timeout_s if is_first else limits.keep_alive_s):
                await self._receive_more()
        except TimeoutError:
            return False
        connection.note_waiting()
        return True

    async def error_response(self, exception: BaseException) -> None:
        """Answer with an error, if nothing was answered yet. Malformed HTTP is refused without checking a key or
        calling a plugin."""
        if self.stage is not Stage.HANDLER:
            self.keep_alive = False
        if self.stage is Stage.REQUEST:
            self.stage = Stage.HANDLER
        if self.stage is not Stage.HANDLER:
            return
        if self.request is None:
            self.create_empty_request()
        app = self.protocol.app
        asks_middleware = not isinstance(exception, (ServiceUnavailable, RequestCancelled, HttpError))
        try:
            await app.handle_exception(self.request, exception, asks_middleware)
        except Exception as error:
            await app.handle_exception(self.request, error, False)

    def create_empty_request(self) -> None:
        """A placeholder request, for errors that occur before a head was parsed."""
        method = self._head.method if self._head is not None else "NONE"
        self.request = self._make_request(b"*", Header({}), method=method, version="1.1", head=b"")
        self.request.stream = self

    def _make_request(self, url: bytes, headers: Header, *, method: str, version: str, head: bytes) -> Any:
        connection: Any = self.protocol
        return connection.request_class(
            url_bytes=url,
            headers=headers,
            head=head,
            version=version,
            method=method,
            transport=connection.transport,
            app=connection.app,
        )

    def log_refusal(self, error: HttpError) -> None:
        """Log one line for a malformed request; those that are too slow, too large or too many are only counted."""
        if error.status in (400, 414, 431, 501, 505):
            logger.warning(
                "malformed request refused status=%d client=%s reason=%r begins=%r",
                error.status,
                self.protocol.client_ip,
                str(error),
                self._shown,
            )

    # ---- heads

    async def http1_request_header(self) -> None:
        """Receive and parse a head into self.request. Raises HttpError."""
        head = await self._receive_head()
        self._shown = head.partition(b"\r\n")[0][:_LONGEST_SHOWN]
        self._head = parsed = parse_head(head)
        self.url = target = without_root_path(parsed.target, self.protocol.root_path)
        self.keep_alive = parsed.keeps_alive and self.protocol.app.config.KEEP_ALIVE
        self.head_only = parsed.method == "HEAD"
        headers = Header(parsed.fields)
        self.upgrade_websocket = headers.getone("upgrade", "").lower() == "websocket"
        try:
            request = self._make_request(
                target.encode(), headers, method=parsed.method, version=parsed.version, head=head
            )
        except BadURL:
            raise HttpError("The request target is malformed.") from None
        self.protocol.request_class._current.set(request)
        self.request, request.stream = request, self
        self.request_bytes_left = self.request_bytes = parsed.num_body_bytes or 0
        self.expecting_continue = parsed.expects_continue
        if parsed.is_chunked:
            self._chunks = ChunkedBody()
        if parsed.is_chunked or parsed.num_body_bytes:
            self.request_body = True
            self._check_first_chunk()
        state = self.protocol.state
        state["requests_count"] = state.get("requests_count", 0) + 1
        self.protocol.note_busy()

    async def _receive_head(self) -> bytes:
        """The bytes before the empty line, taken out of the buffer with it."""
        buffer = self.recv_buffer
        end = self._find_head_end(0)
        if end < 0:
            began_s = self.protocol.waits_since_s or self.protocol.loop.time()
            deadline_s = began_s + self.protocol.limits.header_timeout_s
            try:
                async with asyncio.timeout_at(deadline_s):
                    while end < 0:
                        checked = len(buffer)
                        await self._receive_more()
                        end = self._find_head_end(checked)
            except TimeoutError:
                raise HttpError("The headers did not arrive in time.", status=_TIMED_OUT) from None
        head = bytes(buffer[:end])
        del buffer[: end + 4]
        return head

    def _find_head_end(self, checked: int) -> int:
        buffer = self.recv_buffer
        while buffer.startswith(b"\r\n"):  # some clients end a body with an empty line of their own
            del buffer[:2]
            checked = 0
        if not buffer or buffer == b"\r":
            return -1
        self._shown = bytes(buffer[:_LONGEST_SHOWN]).partition(b"\r\n")[0]
        return find_head_end(buffer, checked)

    def _check_first_chunk(self) -> None:
        """Refuse a chunked body whose start is malformed before the key is checked and plugins are called."""
        if self._chunks is not None and self.recv_buffer:
            ChunkedBody().take(bytearray(self.recv_buffer))

    # ---- bodies

    def open_share(self) -> BodyShare:
        """Count this request's body against the worker's budget, until the request ends."""
        self._share = self.protocol.open_body_share()
        return self._share

    async def read(self) -> bytes | None:
        """The next piece of the body, None at its end. Raises HttpError: 400 for malformed chunks, 408 when the whole
        body has not come in time."""
        if self.expecting_continue:
            self.expecting_continue = False
            await self._send(HTTP_CONTINUE)
        while self.request_body:
            piece = self._take_piece()
            has_more = self._chunks is not None and self._chunks.stopped_early
            if has_more:
                await asyncio.sleep(0)  # many small chunks take long: let other requests run
            if piece:
                return piece
            if self.request_body and not has_more:
                await self._receive_body_bytes()
        self.protocol.note_busy()
        return None

    def _take_piece(self) -> bytes:
        """The bytes of the body in the buffer; b"" for none, or for its end (request_body is None then)."""
        buffer = self.recv_buffer
        if self._chunks is None:
            piece = bytes(buffer[: self.request_bytes_left])
            del buffer[: len(piece)]
            self.request_bytes_left -= len(piece)
            if not self.request_bytes_left:
                self.request_body = None
            return piece
        try:
            piece = self._chunks.take(buffer)
        except HttpError:
            self.keep_alive, self.request_body = False, None
            self._linger_s = self.protocol.limits.discard_s
            raise
        self.request_bytes += len(piece)
        if self._chunks.is_complete:
            self.request_body = None
        return piece

    async def _receive_body_bytes(self) -> None:
        connection = self.protocol
        if self._body_deadline_s is None:
            self._body_deadline_s = connection.loop.time() + connection.limits.body_timeout_s
            connection.note_waiting()
        try:
            async with asyncio.timeout_at(self._body_deadline_s):
                await self._receive_more()
        except TimeoutError:
            self.keep_alive, self.request_body, self._linger_s = False, None, _LAST_MOMENT_S
            raise HttpError("The body did not arrive in time.", status=_TIMED_OUT) from None

    async def _discard(self) -> None:
        """Read and drop the rest of a refused body, for a bounded time and size: a client that still sends when the
        connection closes may not see the answer."""
        self.keep_alive = False
        connection = self.protocol
        connection.note_waiting()
        connection.end_writing()
        connection.discard_from_now_on()
        limits = connection.limits
        try:
            async with asyncio.timeout(self._linger_s):
                while connection.num_discarded < _DISCARDED_BYTES and connection.is_open:
                    async with asyncio.timeout(limits.discard_pause_s):
                        await self._receive_more()
        except TimeoutError:
            return

    # ---- answers

    async def http1_response_header(self, data: bytes, end_stream: bool) -> None:
        """Write the head of an answer, with the part of its body that is there."""
        answer = self.response
        if not data and (body := getattr(answer, "body", None)):
            data, end_stream = body, True
        if not isinstance(answer.status, int) or answer.status < 200:
            raise RuntimeError(f"Invalid response status {answer.status!r}")
        self._settle_body()
        self.expecting_continue = False
        data, end_stream = self._choose_framing(data, end_stream)
        answer.headers["connection"] = "keep-alive" if self.keep_alive else "close"
        head = format_http1_response(answer.status, answer.processed_headers)
        await self._send(head + data if data else head)
        self.stage = Stage.IDLE if end_stream else Stage.RESPONSE

    def _settle_body(self) -> None:
        """Drop a body that has arrived and was not read; the connection can't be used again when more must come."""
        if not self.request_body:
            return
        with contextlib.suppress(HttpError):
            self._take_piece()
        if self.request_body:
            self.keep_alive = False

    def _choose_framing(self, data: bytes, end_stream: bool) -> tuple[bytes, bool]:
        """Set the header fields of the body's framing and the function that writes the rest of it. Returns (the body's
        first bytes as sent, whether the body is complete)."""
        answer = self.response
        headers, size = answer.headers, len(data)
        self.response_size = size
        self.response_func = None
        if not has_message_body(answer.status):  # type: ignore[no-untyped-call]
            headers.pop("content-length", None)
            headers.pop("transfer-encoding", None)
            return b"", True
        if end_stream:
            if not (self.head_only and "content-length" in headers):
                headers["content-length"] = size
        elif "content-length" in headers:
            self.response_bytes_left = int(headers["content-length"]) - size
            self.response_func = self.http1_response_normal
        elif self.request.version == "1.0":
            self.keep_alive = False
            self.response_func = self._write_until_close
        else:
            headers["transfer-encoding"] = "chunked"
            self.response_func = self.http1_response_chunked
            data = b"%x\r\n%b\r\n" % (size, data) if size else b""
        if self.head_only:
            data = b""
            if not end_stream:
                self.response_func = self._write_nothing
        return data, end_stream

    async def _write_until_close(self, data: bytes, end_stream: bool) -> None:
        """A streamed body for HTTP/1.0, which has no chunks: the end of the connection is the end of the body."""
        if data:
            await self._send(data)
        if end_stream:
            self.response_func = None
            self.stage = Stage.IDLE

    async def _write_nothing(self, data: bytes, end_stream: bool) -> None:
        """The body of an answer to HEAD."""
        if end_stream:
            self.response_func = None
            self.stage = Stage.IDLE
