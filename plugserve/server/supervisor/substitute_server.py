"""Answers 503 on the listening socket while all workers hang, so that probes get an answer.

Runs on the supervisor's event loop. Reads a request's head, never its body, and closes each connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Mapping
from typing import Final

import orjson

from plugserve.server.worker.http.root_path import without_root_path

log = logging.getLogger(__name__)

_PROBES: Final = ("/health", "/ready", "/ping")
_MOST_CONNECTIONS: Final = 64
_HEAD_S: Final = 2.0
_HEAD_BYTES: Final = 16384
_MESSAGE: Final = "No server worker responds; send the request again in a moment."


class SubstituteServer:
    """Listens on a duplicate of listener while all workers hang. certfile and keyfile are HTTPS's, None without it."""

    def __init__(
        self, listener: socket.socket, certfile: str | None = None, keyfile: str | None = None, *, root_path: str = ""
    ) -> None:
        self._listener = listener
        self._certfile = certfile
        self._keyfile = keyfile
        self._root_path = root_path
        self._server: asyncio.Server | None = None
        self._workers: Mapping[str, str] = {}
        self._num_connections = 0

    async def follow(self, hung: Mapping[str, str], num_workers: int) -> None:
        """Start serving when all of num_workers hang, stop otherwise. hung describes each hung worker, by index."""
        self._workers = dict(hung)
        if num_workers and len(hung) == num_workers:
            await self._start()
        else:
            self.stop()

    async def _start(self) -> None:
        if self._server is None:
            duplicate = self._listener.dup()
            duplicate.setblocking(False)
            try:
                tls = self._tls()
                self._server = await asyncio.start_server(self._answer, sock=duplicate, ssl=tls, limit=_HEAD_BYTES)
            except OSError as error:  # ssl.SSLError is one
                duplicate.close()
                log.error("no server worker responds, and the supervisor can't answer 503 instead: %s", error)
                return
            log.warning("no server worker responds; the supervisor answers 503 until one does")

    def _tls(self) -> ssl.SSLContext | None:
        """The TLS context of HTTPS, from the files as they are now, which may have been replaced."""
        if self._certfile is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._certfile, self._keyfile)
        return context

    def stop(self) -> None:
        """Stop accepting; answers that are being written are finished."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._num_connections += 1
        try:
            if self._num_connections <= _MOST_CONNECTIONS:
                async with asyncio.timeout(_HEAD_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._response(head))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a client that sends no complete head gets no answer
        finally:
            self._num_connections -= 1
            with contextlib.suppress(OSError):
                writer.close()

    def _response(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        target = without_root_path(rest.split(b" ", 1)[0].decode("latin-1"), self._root_path)
        path = target.split("?", 1)[0].rstrip("/")
        if path in _PROBES:
            body = {"status": "hung", "workers": self._workers} | ({"ready": False} if path == "/ready" else {})
        else:
            error = {"message": _MESSAGE, "type": "server_error", "param": None, "code": "engine_unavailable"}
            body = {"error": error}
        payload = orjson.dumps(body)
        lines = (
            b"HTTP/1.1 503 Service Unavailable",
            b"content-type: application/json",
            b"content-length: %d" % len(payload),
            b"retry-after: 1",
            b"connection: close",
        )
        return b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if method == b"HEAD" else payload)
