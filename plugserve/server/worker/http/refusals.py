"""Connections beyond the limit: answered 503 (with TLS: an alert) and closed, with rate-limited log lines."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Final

import orjson

from plugserve.server.api.error_responses import error_object
from plugserve.server.api.json_body import JSON_TYPE

logger = logging.getLogger(__name__)

_MESSAGE: Final = "The server has reached its limit of connections; try again in a moment."
_BODY: Final = orjson.dumps(error_object(503, _MESSAGE, code="too_many_connections"))
_ANSWER: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: %b\r\ncontent-length: %d\r\nretry-after: 1\r\n"
    b"connection: close\r\n\r\n%b" % (JSON_TYPE.encode(), len(_BODY), _BODY)
)
_TLS_CLOSE_NOTIFY: Final = bytes([21, 3, 1, 0, 2, 1, 0])  # RFC 8446, sections 5.1 and 6: an alert record, unencrypted
_MOST_LEAVING: Final = 32
_LEAVE_S: Final = 1.0
_LOG_PAUSE_S: Final = 5.0
_READ_BYTES: Final = 65536


class Refusals:
    """Answers and closes sockets. Up to a bounded number stay open for a second after the answer, or until the client
    closes: a client that still sends when its connection closes may not see the answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._leaving: dict[socket.socket, asyncio.TimerHandle] = {}

    def refuse(self, client: socket.socket, *, is_tls: bool) -> None:
        """Takes the socket over. A TLS client gets an alert instead of an answer, which would need a handshake."""
        try:
            with contextlib.suppress(BlockingIOError):
                client.recv(_READ_BYTES)
            client.send(_TLS_CLOSE_NOTIFY if is_tls else _ANSWER)
            client.shutdown(socket.SHUT_WR)
        except OSError:
            client.close()
            return
        if len(self._leaving) >= _MOST_LEAVING:
            client.close()
            return
        self._leaving[client] = self._loop.call_later(_LEAVE_S, self._end, client)
        self._loop.add_reader(client.fileno(), self._read, client)

    def close(self) -> None:
        for client in list(self._leaving):
            self._end(client)

    def _read(self, client: socket.socket) -> None:
        try:
            if client.recv(_READ_BYTES):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._end(client)

    def _end(self, client: socket.socket) -> None:
        timer = self._leaving.pop(client, None)
        if timer is not None:
            timer.cancel()
            self._loop.remove_reader(client.fileno())
            client.close()


class CountedWarning:
    """A warning that is logged at most once in a few seconds, with the number of events since the last time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, message: str) -> None:
        self._loop = loop
        self._message = message
        self._num_due = 0
        self._detail = ""
        self._timer: asyncio.TimerHandle | None = None

    def count(self, detail: str) -> None:
        self._num_due += 1
        self._detail = detail
        if self._timer is None:
            self._write()

    def _write(self) -> None:
        self._timer = None
        if self._num_due:
            logger.warning(self._message, self._num_due, self._detail)
            self._num_due = 0
            self._timer = self._loop.call_later(_LOG_PAUSE_S, self._write)
