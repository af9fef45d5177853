"""Accepts up to max_connections connections of one worker, and serves the app on them.

Accepting is done here rather than by the event loop's own server, because that one closes its listening socket for good
when the process runs out of file descriptors.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from sanic import Sanic

from plugserve.server.worker.http.body_budget import BodyBudget
from plugserve.server.worker.http.connection import HttpConnection
from plugserve.server.worker.http.connection_limits import ConnectionLimits
from plugserve.server.worker.http.refusals import CountedWarning, Refusals

logger = logging.getLogger(__name__)

_ACCEPTS_A_TURN: Final = 32
_PAUSE_S: Final = 0.2  # without accepting, when no descriptor is left
_CLOSE_S: Final = 0.3
_CLOSE_STEP_S: Final = 0.02
_LEAST_WAIT_S: Final = 1.0  # a connection that has waited less is not dropped for a new one
_LEAST_DROPPED: Final = 8  # at a time
_LEAST_CONNECTIONS: Final = 8
_RESERVED_DESCRIPTORS: Final = 96  # for sandboxes, sockets to engines, files
_MOST_DESCRIPTORS: Final = 65536
_OUT_OF_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


AT_LIMIT: Final = "limit"
DROPPED_FOR_NEW: Final = "dropped_for_new"
NO_DESCRIPTORS: Final = "no_descriptors"


class HttpServer:
    """Serves app on the listening socket from start() to stop_accepting(); connections holds those that are open.
    on_turned_away is called with the reason for each connection that is refused, dropped or not accepted."""

    def __init__(
        self,
        app: Sanic[Any, Any],
        listener: socket.socket,
        *,
        limits: ConnectionLimits | None = None,
        tls: ssl.SSLContext | None = None,
        root_path: str = "",
        on_turned_away: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.limits = limits if limits is not None else ConnectionLimits()
        self.tls = tls
        self.root_path = root_path
        self.connections: set[HttpConnection] = set()
        self._app = app
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self.budget = BodyBudget(self.limits.max_body_bytes_in_flight, self._loop.time)
        self._opening: set[asyncio.Task[None]] = set()
        self._is_accepting = False
        self._room_made_s = 0.0
        self._max_connections = self.limits.max_connections
        self._refusals = Refusals(self._loop)
        self._on_turned_away = on_turned_away
        self._full = CountedWarning(self._loop, "connections refused or dropped: %d; %s")

    async def start(self) -> None:
        """Start the app and accept connections."""
        app: Any = self._app
        await app._startup()
        await app._server_event("init", "before", loop=self._loop)
        self._max_connections = _connections_that_fit(self.limits.max_connections, self.limits.num_descriptors)
        self._listener.setblocking(False)
        self._resume()
        await app._server_event("init", "after", loop=self._loop)

    def stop_accepting(self) -> None:
        """Accept no more connections; new ones go to another worker, or wait."""
        if self._is_accepting:
            self._is_accepting = False
            self._loop.remove_reader(self._listener.fileno())
        for task in self._opening:
            task.cancel()
        self._refusals.close()

    async def close_connections(self) -> None:
        """Close all connections, after a short time for answers that are being written."""
        for connection in list(self.connections):
            connection.close(timeout=_CLOSE_S)
        waited_s = 0.0
        while self.connections and waited_s < _CLOSE_S:
            await asyncio.sleep(_CLOSE_STEP_S)
            waited_s += _CLOSE_STEP_S

    def _resume(self) -> None:
        self._is_accepting = True
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _pause(self) -> None:
        self._is_accepting = False
        self._loop.remove_reader(self._listener.fileno())
        self._loop.call_later(_PAUSE_S, self._resume)

    # ---- accepting

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            try:
                client, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    self._turn_away(NO_DESCRIPTORS, f"accept failed: {error.strerror}; connections={self._num_open}")
                    self._make_room()
                    self._pause()
                    return
                continue  # the client has disconnected
            client.setblocking(False)
            _send_at_once(client)
            if self._num_open >= self._max_connections and not self._make_room():
                limit = f"the limit is {self._max_connections} connections (--max-connections, open files)"
                self._turn_away(AT_LIMIT, limit)
                self._refusals.refuse(client, is_tls=self.tls is not None)
            else:
                self._open(client)

    @property
    def _num_open(self) -> int:
        return len(self.connections) + len(self._opening)

    def _open(self, client: socket.socket) -> None:
        task = self._loop.create_task(self._connect(client))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self, client: socket.socket) -> None:
        """Hand the socket to the event loop, after the TLS handshake with HTTPS."""
        config = self._app.config
        make_protocol = partial(
            HttpConnection,
            self,
            loop=self._loop,
            app=self._app,
            connections=self.connections,
            websocket_max_size=config.WEBSOCKET_MAX_SIZE,
            websocket_ping_interval=config.WEBSOCKET_PING_INTERVAL,
            websocket_ping_timeout=config.WEBSOCKET_PING_TIMEOUT,
        )
        try:
            if self.tls is None:
                await self._loop.connect_accepted_socket(make_protocol, client)
            else:
                await self._loop.connect_accepted_socket(
                    make_protocol, client, ssl=self.tls, ssl_handshake_timeout=self.limits.header_timeout_s
                )
        except (OSError, asyncio.CancelledError) as error:  # ssl.SSLError and TimeoutError are OSErrors
            logger.debug("connection failed: %r", error)
            with contextlib.suppress(OSError):
                client.close()

    # ---- room

    def _make_room(self) -> bool:
        """Drop the connections whose clients have been waited for longest, those without a key first. False when there
        are none. Each call iterates over all connections, so it drops several at a time, and calls are rate-limited."""
        now_s = self._loop.time()
        if now_s - self._room_made_s < _PAUSE_S:
            return False
        self._room_made_s = now_s
        waiting = [
            (connection.has_passed, connection.waits_since_s, connection)
            for connection in self.connections
            if connection.waits_since_s is not None and now_s - connection.waits_since_s > _LEAST_WAIT_S
        ]
        waiting.sort(key=lambda entry: entry[:2])
        chosen = waiting[: max(_LEAST_DROPPED, self._max_connections // 16)]
        for _, _, connection in chosen:
            connection.drop()
            self.connections.discard(connection)
            waited = f"dropped for new ones, because their clients sent nothing for {_LEAST_WAIT_S:.0f} s"
            self._turn_away(DROPPED_FOR_NEW, waited)
        return bool(chosen)

    def _turn_away(self, reason: str, detail: str) -> None:
        self._full.count(detail)
        self._on_turned_away(reason)


def _send_at_once(client: socket.socket) -> None:
    """Don't hold back a small piece of an answer until the client has acknowledged the one before. uvloop does this
    itself, asyncio only for sockets made with the protocol's number."""
    if client.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):  # the client has disconnected
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _connections_that_fit(wanted: int, num_descriptors: int) -> int:
    """The limit, lowered to what the process's open files allow, num_descriptors for each connection; logs one line if
    that is less than the setting."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    if soft == resource.RLIM_INFINITY:
        return wanted
    fitting = max(_LEAST_CONNECTIONS, (soft - _num_open_descriptors() - _RESERVED_DESCRIPTORS) // num_descriptors)
    if fitting < wanted:
        logger.warning(
            "max_connections=%d is lowered to %d: this process may have %d open files (ulimit -n)",
            wanted,
            fitting,
            soft,
        )
    return min(wanted, fitting)


def _num_open_descriptors() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return len(os.listdir(folder))
    return 64
