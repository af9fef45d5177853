"""Requests to one upstream, over connections that are kept between requests."""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import AsyncIterator
from typing import Final

from plugserve.server.router.upstream_address import UpstreamAddress
from plugserve.server.router.upstream_connection import (
    Fields,
    UpstreamConnection,
    UpstreamLost,
    UpstreamReset,
    UpstreamSilent,
    reason_of,
)

_KEPT_S: Final = 4.0  # less than any server keeps an idle connection, so that none closes while a request is sent
_MOST_KEPT: Final = 256
_REPEATABLE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_OWN_FAULTS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})


class NotTaken(Exception):
    """The upstream hasn't taken up the request; another one may be tried. The message is for logs."""


class ConnectFailed(NotTaken):
    """No connection. is_own_fault: this process has no descriptor or port left, which says nothing about the
    upstream."""

    def __init__(self, message: str, *, is_own_fault: bool = False) -> None:
        super().__init__(message)
        self.is_own_fault = is_own_fault


class UpstreamAnswer:
    """An answer whose head has come. Close it: it returns the connection or, early, ends it."""

    def __init__(self, connection: UpstreamConnection, status: int, fields: Fields) -> None:
        self.status = status
        self.fields = fields
        self._connection = connection

    def field(self, name: bytes) -> bytes | None:
        """The first value of a header field, by its name in lower case."""
        return next((value for known, value in self.fields if known == name), None)

    async def receive(self) -> bytes:
        """The next bytes of the body, b"" at its end. Raises UpstreamLost, UpstreamSilent."""
        return await self._connection.receive()

    async def pieces(self) -> AsyncIterator[bytes]:
        while piece := await self.receive():
            yield piece

    async def read(self, max_bytes: int) -> bytes:
        """The whole body. Raises UpstreamLost, also for a larger one."""
        parts: list[bytes] = []
        num_bytes = 0
        async for piece in self.pieces():
            parts.append(piece)
            num_bytes += len(piece)
            if num_bytes > max_bytes:
                raise UpstreamLost(f"its answer is larger than {max_bytes} bytes")
        return b"".join(parts)

    def close(self) -> None:
        self._connection.finish()


class UpstreamClient:
    """Sends requests to one address. silence_s: the longest wait for a byte of an answer."""

    def __init__(self, address: UpstreamAddress, *, connect_s: float, silence_s: float) -> None:
        self._address = address
        self._connect_s = connect_s
        self._silence_s = silence_s
        self._tls = ssl.create_default_context() if address.is_tls else None
        self._idle: list[UpstreamConnection] = []  # the one used last is at the end
        self._all: set[UpstreamConnection] = set()

    @property
    def num_connections(self) -> int:
        return len(self._all)

    async def send(
        self, method: str, target: str, fields: Fields, body: bytes = b"", *, silence_s: float | None = None
    ) -> UpstreamAnswer:
        """Send a request and wait for the head of its answer. fields carry neither Host nor framing.

        Raises NotTaken, or UpstreamLost (UpstreamSilent) when the upstream may have taken it up. A request is sent
        again over a new connection when a kept one turns out to be closed, if it may be repeated or wasn't taken up.
        """
        wait_s = self._silence_s if silence_s is None else silence_s
        head = self._head(method, target, fields, body)
        while True:
            connection = self._take_idle() or await self._connect()
            is_kept = connection.num_exchanges > 0
            try:
                connection.send(head, body, is_head=method == "HEAD", silence_s=wait_s)
                status, answered = await connection.receive_head()
            except UpstreamLost as error:
                connection.close()
                is_reset = isinstance(error, UpstreamReset)
                may_repeat = is_reset or (method in _REPEATABLE and not isinstance(error, UpstreamSilent))
                if is_kept and may_repeat:
                    continue
                if is_reset:
                    raise NotTaken(str(error)) from None
                raise
            except BaseException:  # the client has gone
                connection.close()
                raise
            return UpstreamAnswer(connection, status, answered)

    def fail_silent(self, silent_s: float, message: str) -> int:
        """End the exchanges that have had no byte for silent_s. Returns how many."""
        now_s = asyncio.get_running_loop().time()
        silent = [one for one in self._all if one.is_waiting and now_s - one.last_heard_s >= silent_s]
        for connection in silent:
            connection.fail(message)
        return len(silent)

    def fail_all(self, message: str) -> None:
        """End every exchange, with an error for those that are running."""
        for connection in list(self._all):
            connection.fail(message)

    def close_idle(self) -> None:
        """Close the kept connections, such as those to a process that has gone."""
        while self._idle:
            self._idle.pop().close()

    # ---- connections

    def _head(self, method: str, target: str, fields: Fields, body: bytes) -> bytes:
        lines = [
            f"{method} {self._address.path}{target} HTTP/1.1".encode(errors="surrogateescape"),
            b"host: " + self._address.host_field.encode(),
        ]
        lines += [b"%b: %b" % field for field in fields]
        if body or method in ("POST", "PUT", "PATCH"):
            lines.append(b"content-length: %d" % len(body))
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _take_idle(self) -> UpstreamConnection | None:
        oldest_s = asyncio.get_running_loop().time() - _KEPT_S
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable and connection.last_heard_s > oldest_s and not connection.has_unread_end():
                return connection
            connection.close()
        return None

    def _keep(self, connection: UpstreamConnection) -> None:
        oldest_s = asyncio.get_running_loop().time() - _KEPT_S
        while self._idle and (len(self._idle) >= _MOST_KEPT or self._idle[0].last_heard_s <= oldest_s):
            self._idle.pop(0).close()
        self._idle.append(connection)

    def _forget(self, connection: UpstreamConnection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    async def _connect(self) -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        address = self._address
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await loop.create_connection(
                    lambda: UpstreamConnection(self._keep, self._forget), address.host, address.port, ssl=self._tls
                )
        except TimeoutError:
            raise ConnectFailed(f"it did not accept a connection in {self._connect_s:g} s") from None
        except OSError as error:  # refused, no such name, TLS
            is_own_fault = error.errno in _OWN_FAULTS
            raise ConnectFailed(reason_of(error), is_own_fault=is_own_fault) from None
        self._all.add(connection)
        return connection
