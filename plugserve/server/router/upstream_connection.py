"""One HTTP/1.1 connection to an upstream: sends a request, receives its answer piece by piece.

Answers are parsed by httptools, Sanic's own parser. A client library between two byte streams would decode and rebuild
what must pass unchanged, and its pools cost time by the number of connections.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import httptools

Fields = Sequence[tuple[bytes, bytes]]

_MAX_HEAD_BYTES: Final = 65536
_MOST_JOINED_BYTES: Final = 65536  # head and body go out in one packet up to here
_MAX_BUFFERED_BYTES: Final = 262144  # a client that reads slowly holds back its upstream from here on


class UpstreamLost(Exception):
    """The connection broke, or the answer broke HTTP's rules. The message is for logs and clients."""


class UpstreamSilent(UpstreamLost):
    """No byte came for as long as the settings allow."""


class UpstreamReset(UpstreamLost):
    """The connection was reset before a byte of the answer came. A kernel does so for a closed socket whose program
    hasn't read all of the request, so the upstream hasn't taken it up."""


class UpstreamConnection(asyncio.Protocol):
    """Carries one exchange at a time. on_idle is called after an answer that leaves the connection usable, on_closed
    when the connection is gone."""

    def __init__(
        self, on_idle: Callable[[UpstreamConnection], None], on_closed: Callable[[UpstreamConnection], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_idle = on_idle
        self._on_closed = on_closed
        self._transport: asyncio.Transport | None = None
        self._has_written = True
        self._has_heard = False  # a byte of the answer
        self._news = asyncio.Event()
        self._answer: _Answer | None = None
        self._silence_s = 0.0
        self._error: UpstreamLost | None = None
        self.num_exchanges = 0
        self.last_heard_s = self._loop.time()  # or sent, which begins a wait

    # ---- used by UpstreamClient

    @property
    def is_usable(self) -> bool:
        """Idle and open, as far as this process has been told."""
        return self._error is None and self._transport is not None and not self._transport.is_closing()

    def has_unread_end(self) -> bool:
        """The upstream has closed the connection, or sent bytes that belong to no answer, since the event loop last
        looked. Unknown with TLS, whose own messages may wait."""
        if self._transport is None or self._transport.get_extra_info("ssl_object") is not None:
            return False
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    @property
    def is_waiting(self) -> bool:
        """Bytes of an answer are awaited; not while a slow client holds the upstream back."""
        is_answering = self._answer is not None and not self._answer.is_complete
        return is_answering and self._transport is not None and self._transport.is_reading()

    def send(self, head: bytes, body: bytes, *, is_head: bool, silence_s: float) -> None:
        """Write a request; silence_s is the longest wait for a byte of the answer. Raises UpstreamLost.

        Does not wait until the body is written: a refusal may come before, and then the rest is not needed.
        """
        if self._error is not None or self._transport is None:
            raise self._error or UpstreamLost("it is not connected")
        self._answer = _Answer(is_head)
        self._has_heard = False
        self._silence_s = silence_s
        self.num_exchanges += 1
        self.last_heard_s = self._loop.time()
        if len(body) <= _MOST_JOINED_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    async def receive_head(self) -> tuple[int, Fields]:
        """Wait for the answer's status and fields. Raises UpstreamLost."""
        answer = self._current()
        while not answer.has_head:
            await self._wait()
        return answer.status, answer.fields

    async def receive(self) -> bytes:
        """Wait for bytes of the answer's body; b"" at its end. Raises UpstreamLost when the body breaks off."""
        answer = self._current()
        while not answer.pieces and not answer.is_complete:
            await self._wait()
        data = b"".join(answer.pieces)
        answer.pieces.clear()
        answer.num_buffered = 0
        if not answer.is_complete and self._transport is not None and not self._transport.is_reading():
            self._transport.resume_reading()
        return data

    def finish(self) -> None:
        """End the exchange: keep the connection for another one, or close it if the answer isn't complete."""
        answer, self._answer = self._answer, None
        if answer is None:
            return
        if answer.is_complete and answer.keeps_alive and self.is_usable and self._has_written:
            self._transport.resume_reading()  # type: ignore[union-attr]
            self.last_heard_s = self._loop.time()
            self._on_idle(self)
        else:
            self.close()

    def close(self) -> None:
        """Close at once; the upstream stops generating."""
        if self._transport is not None:
            self._transport.abort()

    def fail(self, message: str) -> None:
        """End the exchange with an error, as if the connection had broken."""
        self._note_error(UpstreamLost(message))
        self.close()

    # ---- asyncio's protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        _notice_dead_hosts(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        self.last_heard_s = self._loop.time()
        self._has_heard = True
        answer = self._answer
        if answer is None or answer.is_complete:
            self.fail("it sent bytes that belong to no answer")
            return
        try:
            answer.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not answer.note_parse_error():
                self.fail(f"its answer is no valid HTTP: {type(error).__name__}")
                return
        if answer.num_head_bytes > _MAX_HEAD_BYTES:
            self.fail("the headers of its answer are too large")
        elif answer.num_buffered > _MAX_BUFFERED_BYTES and not answer.is_complete:
            self._transport.pause_reading()  # type: ignore[union-attr]
        self._news.set()

    def eof_received(self) -> bool:
        return False  # close the connection

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None:
            self._answer.note_end_of_connection()
        if isinstance(error, ConnectionResetError | BrokenPipeError) and not self._has_heard:
            self._note_error(UpstreamReset(f"it reset the connection ({reason_of(error)})"))
        else:
            reason = f" ({reason_of(error)})" if error else ""
            self._note_error(UpstreamLost(f"it closed the connection{reason}"))
        self._on_closed(self)

    def pause_writing(self) -> None:
        self._has_written = False

    def resume_writing(self) -> None:
        self._has_written = True

    # ---- inside

    def _current(self) -> _Answer:
        assert self._answer is not None, "there is no exchange"
        return self._answer

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._news.clear()
        try:
            async with asyncio.timeout(self._silence_s):
                await self._news.wait()
        except TimeoutError:
            raise UpstreamSilent(f"it sent nothing for {self._silence_s:g} s") from None

    def _note_error(self, error: UpstreamLost) -> None:
        if self._error is None:
            self._error = error
        self._news.set()


class _Answer:
    """One answer as the parser reports it. The parser's own callbacks are the on_ methods."""

    def __init__(self, is_head: bool) -> None:
        self._is_head = is_head  # an answer to HEAD has no body, whatever its fields say
        self.parser: Any = httptools.HttpResponseParser(self)
        self.status = 0
        self.fields: list[tuple[bytes, bytes]] = []
        self.pieces: list[bytes] = []
        self.num_buffered = 0
        self.num_head_bytes = 0
        self.has_head = False
        self.is_complete = False
        self.keeps_alive = False
        self._is_interim = False
        self._ends_with_connection = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.num_head_bytes += len(name) + len(value) + 4
        if not self.has_head and self.num_head_bytes <= _MAX_HEAD_BYTES:
            self.fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self.is_complete:  # a second answer to one request
            self.keeps_alive = False
            return
        status = self.parser.get_status_code()
        self._is_interim = 100 <= status < 200
        if self._is_interim:  # 100 Continue, 103 Early Hints: the answer follows
            self.fields.clear()
            return
        self.status = status
        self.has_head = True
        names = {name for name, _ in self.fields}
        has_length = b"content-length" in names or b"transfer-encoding" in names
        self._ends_with_connection = not has_length and status not in (204, 304)
        self.keeps_alive = self.parser.should_keep_alive() and not self._ends_with_connection
        if self._is_head:
            self.keeps_alive = self.parser.should_keep_alive()
            self.is_complete = True

    def on_body(self, data: bytes) -> None:
        if self.is_complete:
            self.keeps_alive = False
            return
        self.pieces.append(data)
        self.num_buffered += len(data)

    def on_message_complete(self) -> None:
        if not self._is_interim:
            self.is_complete = True
        self._is_interim = False

    def note_parse_error(self) -> bool:
        """What follows a complete answer can't be parsed, which only ends the connection. False within an answer."""
        self.keeps_alive = False
        return self.is_complete

    def note_end_of_connection(self) -> None:
        """The end of a body without a length is the end of its connection."""
        self.keeps_alive = False
        if self.has_head and self._ends_with_connection:
            self.is_complete = True


def _notice_dead_hosts(connected: socket.socket) -> None:
    """Let the kernel probe a silent connection, so that a host that has vanished is noticed within a minute."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # macOS has not all of them
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def reason_of(error: BaseException) -> str:
    """An error in a few words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
