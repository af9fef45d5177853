"""An upstream that answers as a test says, byte by byte, over real sockets."""

import asyncio
import json
import socket
import struct
from dataclasses import dataclass, field


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    target: str
    headers: dict
    body: bytes

    @property
    def path(self):
        return self.target.partition("?")[0]

    @property
    def json(self):
        return json.loads(self.body)


@dataclass
class StubUpstream:
    """answer(seen, writer) writes an answer; models are those of /v1/models. health: its status. key: what probes must
    send. status: of its models. hangs: probes get no answer. resets: connections end before their request is read."""

    name: str = "a"
    models: tuple = ("m",)
    health: int = 200
    answer: object = None
    seen: list = field(default_factory=list)
    key: str | None = None
    status: str | None = None
    tls: object = None
    hangs: bool = False
    resets: bool = False
    num_open: int = 0
    num_connections: int = 0
    num_probes: int = 0

    async def start(self, port=0):
        self._writers = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=2**20, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    @property
    def url(self):
        return f"{'http' if self.tls is None else 'https'}://localhost:{self.port}"

    def die(self):
        """Close the listening socket and reset every connection, as the end of a process does."""
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader, writer):
        self.num_connections += 1
        self.num_open += 1
        self._writers.add(writer)
        if self.resets:
            await reader.read(1)
            writer.transport.pause_reading()
            await asyncio.sleep(0.05)
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        try:
            while True:
                seen = await _read_request(reader)
                if seen.path in ("/health", "/v1/models") and seen.method == "GET":
                    self.num_probes += 1
                    if not self.hangs:
                        writer.write(self._probed(seen))
                else:
                    self.seen.append(seen)
                    is_unknown = seen.path.startswith("/v1/models/") and self.answer is None
                    default = answers({"from": self.name}, 404 if is_unknown and seen.method == "GET" else 200)
                    await (self.answer or default)(seen, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the test is over
        finally:
            self.num_open -= 1
            self._writers.discard(writer)
            writer.close()

    def _probed(self, seen):
        if seen.path == "/health":
            return plain({"status": "ok"}, self.health)
        if self.key is not None and seen.headers.get("authorization") != f"Bearer {self.key}":
            return plain({"error": {"message": "no key"}}, 401)
        status = {} if self.status is None else {"status": {"value": self.status}}
        entries = [{"id": model, "object": "model", "owned_by": self.name, **status} for model in self.models]
        return plain({"object": "list", "data": entries})


async def _read_request(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *lines = head.strip().split("\r\n")
    method, target, _ = line.split(" ")
    headers = {}
    for one in lines:
        name, _, value = one.partition(":")
        headers[name.lower()] = (
            f"{headers[name.lower()]}, {value.strip()}" if name.lower() in headers else value.strip()
        )
    assert "transfer-encoding" not in headers
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Seen(method, target, headers, body)


def plain(body, status=200, **headers):
    """A whole answer with a JSON body."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(data)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


def answers(body, status=200, **headers):
    async def answer(seen, writer):
        writer.write(plain(body, status, **headers))

    return answer


def streams(*events, then=None):
    """A stream of events; then(writer) decides how it goes on, else it ends."""

    async def answer(seen, writer):
        writer.write(STREAM_HEAD)
        for event in events:
            writer.write(chunk(event))
            await writer.drain()
        if then is None:
            writer.write(chunk(b""))
        else:
            await then(writer)

    return answer
