"""The channel between rank 0's process and those of the other ranks of a model: calls one way, messages the other.

ZMQ over Unix sockets on one machine, over TCP between machines. Over TCP everything is encrypted by CURVE, with a key
pair of rank 0's that lives as long as the channel. Its public half is never sent over a connection, so only who was
handed it can connect, and only rank 0 can answer. (ZMQ's own check of clients' keys, ZAP, hides later failures of a
connection.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final, cast

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

_POLL_MS: Final = 100
_PING_MS: Final = 200
_UNANSWERED_MS: Final = 1000  # the other machine's kernel acknowledges bytes, even of a process that is stopped
_NEVER_MS: Final = 86_400_000


class Door(msgspec.Struct, frozen=True):
    """What a rank needs to connect: the two addresses, and for TCP rank 0's public key, Z85-coded, else empty. It is
    secret."""

    rank: int
    calls: str
    messages: str
    key: str = ""


class RankChannel:
    """place is the start of the addresses: "ipc:///folder", or "tcp://10.0.0.1" for free ports of that address. doors
    are those of ranks 1 and above, in order. on_message(rank, message), and on_lost(rank) for a connection that broke,
    are called on a thread of the channel."""

    def __init__(
        self,
        place: str,
        num_ranks: int,
        on_message: Callable[[int, bytes], None],
        on_lost: Callable[[int], None] | None = None,
    ) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._is_closing = threading.Event()
        self._sending = threading.Lock()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._keys = zmq.curve_keypair() if place.startswith("tcp:") else None
        self._messages, messages = self._bound(zmq.PULL, place, "messages")
        self._calls: list[zmq.Socket[bytes]] = []
        self._monitors: list[zmq.Socket[bytes]] = []
        self.doors: list[Door] = []
        for rank in range(1, num_ranks):
            socket, address = self._bound(zmq.PUSH, place, f"calls-{rank}")
            self._calls.append(socket)
            self.doors.append(Door(rank, address, messages, self._keys[0].decode() if self._keys else ""))
        self._thread = threading.Thread(target=self._listen, name="rank-messages", daemon=True)
        self._thread.start()

    def _bound(self, kind: int, place: str, name: str) -> tuple[zmq.Socket[bytes], str]:
        socket = _socket(self._context, kind)
        if self._keys is not None:
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys[1])
        if kind == zmq.PUSH and self._on_lost is not None:
            self._monitors.append(socket.get_monitor_socket(zmq.EVENT_DISCONNECTED))
        socket.bind(f"{place}:*" if place.startswith("tcp:") else f"{place}/{name}")
        return socket, cast(bytes, socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()

    def send(self, call: Sequence[bytes]) -> None:
        """To all ranks, from any thread; they get the calls in one order. The first one waits until all are
        connected, later ones don't wait."""
        with self._sending:
            for socket in self._calls:
                socket.send_multipart(call)

    def _listen(self) -> None:
        poller = zmq.Poller()
        for socket in (self._messages, *self._monitors):
            poller.register(socket, zmq.POLLIN)
        while not self._is_closing.is_set():
            for socket, _ in poller.poll(_POLL_MS):
                if socket is self._messages:
                    rank, message = self._messages.recv_multipart()
                    self._on_message(int(rank), message)
                else:
                    recv_monitor_message(socket)
                    self._note_lost(1 + self._monitors.index(socket))

    def _note_lost(self, rank: int) -> None:
        if self._on_lost is not None and not self._is_closing.is_set():
            self._on_lost(rank)

    def expect_ends(self) -> None:
        """From now on a rank that leaves isn't lost."""
        self._on_lost = None

    def close(self) -> None:
        self._is_closing.set()
        self._thread.join()
        for monitor in self._monitors:
            monitor.close(0)
        for socket in (self._messages, *self._calls):
            socket.disable_monitor()
            socket.close(0)
        self._context.term()


class RankChannelEnd:
    """A rank's end (a RankLink), connected by its door."""

    def __init__(self, door: Door) -> None:
        self._rank = str(door.rank).encode()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._calls = self._connected(zmq.PULL, door.calls, door)
        self._messages = self._connected(zmq.PUSH, door.messages, door)
        self._sending = threading.Lock()

    def _connected(self, kind: int, address: str, door: Door) -> zmq.Socket[bytes]:
        socket = _socket(self._context, kind)
        if door.key:
            public, secret = zmq.curve_keypair()
            socket.setsockopt(zmq.CURVE_SERVERKEY, door.key.encode())
            socket.setsockopt(zmq.CURVE_PUBLICKEY, public)
            socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
        socket.connect(address)
        return socket

    def receive(self) -> list[bytes]:
        return self._calls.recv_multipart()

    def send(self, message: bytes) -> None:
        with self._sending:
            self._messages.send_multipart([self._rank, message])

    def close(self) -> None:
        with self._sending:
            self._messages.close(0)
        self._calls.close(0)
        self._context.term()


def _socket(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    """A socket without limits of its queues, whose connection breaks when the other machine is gone."""
    socket = context.socket(kind)
    for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
        socket.setsockopt(option, 0)
    socket.setsockopt(zmq.TCP_MAXRT, _UNANSWERED_MS)
    socket.setsockopt(zmq.HEARTBEAT_IVL, _PING_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _NEVER_MS)
    return socket
