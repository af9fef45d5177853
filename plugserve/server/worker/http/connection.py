"""One client's connection: Sanic's protocol with deadlines and bounded buffers, closed so that clients can read the
whole answer."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from sanic.exceptions import RequestCancelled
from sanic.server.protocols.websocket_protocol import WebSocketProtocol

from plugserve.server.worker.http.body_budget import BodyShare
from plugserve.server.worker.http.connection_limits import ConnectionLimits
from plugserve.server.worker.http.http_stream import HttpStream

if TYPE_CHECKING:
    from plugserve.server.worker.http.http_server import HttpServer

logger = logging.getLogger(__name__)


class HttpConnection(WebSocketProtocol):
    """Made by HttpServer for each client. waits_since_s: since when the server waits for the client, None while it
    doesn't."""

    HTTP_CLASS = HttpStream
    __slots__ = ("_discards", "_server", "has_passed", "limits", "num_discarded", "root_path", "waits_since_s")

    def __init__(self, server: HttpServer, **options: Any) -> None:
        super().__init__(**options)
        self._server = server
        self.limits: ConnectionLimits = server.limits
        self.root_path = server.root_path
        self.waits_since_s: float | None = self.loop.time()
        self.has_passed = False  # a request of this connection had a key, or needed none
        self.num_discarded = 0
        self._discards = False

    # ---- called by HttpStream

    @property
    def client_ip(self) -> str:
        return self.conn_info.client_ip if self.conn_info is not None else ""

    @property
    def is_open(self) -> bool:
        """The connection is open for writing."""
        has_left = self.conn_info is None or self.conn_info.lost
        return self.transport is not None and not self.transport.is_closing() and not has_left

    def note_waiting(self) -> None:
        """The server waits for the client from now on."""
        self.waits_since_s = self.loop.time()

    def note_busy(self) -> None:
        """The client's request is being served."""
        self.waits_since_s = None

    def open_body_share(self) -> BodyShare:
        return self._server.budget.open_share(self.drop)

    def discard_from_now_on(self) -> None:
        """From now on, count received bytes and drop them."""
        self._discards = True
        self.recv_buffer.clear()

    def end_writing(self) -> None:
        """Close the sending side, so that the client sees the answer's end; go on reading."""
        if self.transport is not None and self.transport.can_write_eof():
            self.transport.write_eof()

    def drop(self) -> None:
        """Close at once, without an answer."""
        if self.transport is not None:
            self.transport.abort()

    # ---- Sanic's protocol

    def check_timeouts(self) -> None:
        """Does nothing: HttpStream sets a deadline for each wait."""

    def data_received(self, data: bytes) -> None:
        if self._discards:
            self.num_discarded += len(data)
            self._data_received.set()
        else:
            super().data_received(data)  # type: ignore[no-untyped-call]

    async def send(self, data: bytes) -> None:
        """Write when the send buffer has room. A client that reads nothing for
        write_timeout_s is dropped."""
        if not self._can_write.is_set():
            try:
                async with asyncio.timeout(self.limits.write_timeout_s):
                    await self._can_write.wait()
            except TimeoutError:
                logger.debug("client=%s reads nothing; dropped", self.client_ip)
                self.drop()
        if self.transport is None or self.transport.is_closing():
            raise RequestCancelled
        self.transport.write(data)
