"""Answers the lines of a batch through a server's HTTP API."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import orjson

from plugserve.core.errors import EngineUnavailableError, one_line
from plugserve.core.wire.server_address import ServerAddress, key_header
from plugserve.server.batches.lines import Line, answered

_TIMEOUT_S: Final = 3600.0  # for one answer: a busy server may let a line wait
_NUM_ATTEMPTS: Final = 5
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 60.0
_TRY_AGAIN: Final = frozenset({408, 429, 502, 503, 504})
_SHOWN: Final = 300


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    request_id: str
    body: bytes
    retry_after: str = ""


class HttpAnswers:
    """url is a server's, with or without /v1. Each of concurrency threads has a connection of its own."""

    def __init__(self, url: str, api_key: str, concurrency: int) -> None:
        self._address = ServerAddress.read(url)
        self._url = url
        self._headers = {"Content-Type": "application/json"} | key_header(api_key)
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="batch")
        self._local = threading.local()
        self._connections: list[http.client.HTTPConnection] = []

    async def answer(self, line: Line) -> tuple[int, bytes]:
        """The status, and the line of the result. An overloaded server is asked again, up to five times. Raises
        EngineUnavailableError if the server can't be reached."""
        pause_s = _FIRST_PAUSE_S
        for attempt in range(1, _NUM_ATTEMPTS + 1):
            try:
                reply = await asyncio.get_running_loop().run_in_executor(self._threads, self._send, line)
            except (OSError, http.client.HTTPException) as error:
                if attempt == _NUM_ATTEMPTS:
                    raise EngineUnavailableError(f"{self._url} can't be reached: {one_line(error)}") from None
            else:
                if reply.status not in _TRY_AGAIN or attempt == _NUM_ATTEMPTS:
                    break
                pause_s = max(pause_s, _seconds(reply.retry_after))
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return reply.status, answered(line, reply.status, reply.request_id, _json(reply))

    def _send(self, line: Line) -> _Reply:
        """Blocks. A connection that failed is replaced at the next try."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._address.connection(_TIMEOUT_S)
            self._connections.append(connection)
        try:
            connection.request("POST", self._address.prefix + line.url, orjson.dumps(line.body), self._headers)
            response = connection.getresponse()
            return _Reply(
                response.status,
                response.headers.get("X-Request-Id", ""),
                response.read(),
                response.headers.get("Retry-After", ""),
            )
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """End what is being sent."""
        for connection in self._connections:
            with contextlib.suppress(OSError, AttributeError):  # not connected
                connection.sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for an answer
        self._threads.shutdown(wait=False, cancel_futures=True)


def _seconds(text: str) -> float:
    return min(float(text), _LONGEST_PAUSE_S) if text.isdigit() else 0.0


def _json(reply: _Reply) -> bytes:
    """The reply's body, or an error in its place if it isn't JSON (a proxy's page)."""
    try:
        orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        text = reply.body[:_SHOWN].decode("utf-8", "replace")
        return orjson.dumps({"error": {"message": text, "type": "server_error", "param": None, "code": None}})
    return reply.body
