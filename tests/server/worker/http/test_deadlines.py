"""No client holds what it doesn't use: time, connections, memory, file descriptors."""

import asyncio
import errno
import resource
import socket

import pytest

from plugserve.server.operations.access import Access
from plugserve.server.operations.service_limits import ServiceLimits
from plugserve.server.worker.http.body_budget import BodyBudget
from plugserve.server.worker.http.connection_limits import ConnectionLimits
from plugserve.server.worker.http.request_head import HttpError
from tests.server.conftest import running
from tests.server.fakes import FakeEngine, says, served

KEY = "the-key"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
QUICK = {"header_timeout_s": 0.3, "body_timeout_s": 0.3, "keep_alive_s": 0.5, "discard_s": 0.5, "discard_pause_s": 0.2}


@pytest.fixture
def start(tokenizer, make_state):
    def start(*, keys=(), limits=None, text="hello world!", **connections):
        engine = FakeEngine(says(tokenizer, text), max_model_len=10_000)
        state = make_state(served(engine, tokenizer), access=Access(keys=keys), limits=limits)
        return running(state, limits=ConnectionLimits(**connections))

    return start


async def drip(port, head, data, pause_s=0.02):
    """Send head, then data byte by byte, until the server closes; what it answered. Fails when it took every byte."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    reading = asyncio.create_task(reader.read())
    try:
        writer.write(head)
        for byte in data:
            if reading.done():
                break
            writer.write(bytes([byte]))
            await asyncio.wait([reading], timeout=pause_s)
        assert reading.done(), "the server took every byte"
        return reading.result()
    finally:
        writer.close()


async def stalled(port, data, count):
    return [await sending(port, data) for _ in range(count)]


async def sending(port, data):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    return reader, writer


# ---------------------------------------------------------------- time


async def test_dripping_headers_are_408_after_the_total_time(start):
    async with start(**QUICK) as server:
        assert b" 408 " in await drip(server.port, b"GET / HTTP/1.1\r\n", b"X-A: " + b"a" * 500)


@pytest.mark.parametrize("framing", [b"Content-Length: 600\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n258\r\n"])
async def test_dripping_and_stalled_bodies_are_408_after_the_total_time(start, framing):
    async with start(**QUICK) as server:
        assert b" 408 " in await drip(server.port, POST + framing, b"a" * 500)
        reader, writer = await sending(server.port, POST + framing)
        answer = await reader.read()
        assert b" 408 " in answer
        assert b"did not arrive in time" in answer
        writer.close()
        assert not server.engine.calls


async def test_silent_connections_are_closed(start, eventually):
    async with start(**QUICK) as server:
        first, second = await sending(server.port, b""), await sending(server.port, GET)
        assert await first[0].read() == b""
        assert (await second[0].read()).count(b"HTTP/1.1 200") == 1
        for _, writer in (first, second):
            writer.close()
        await eventually(lambda: not server.http.connections)


async def test_client_that_does_not_read_its_answer_is_dropped(start, eventually):
    async with start(text="a" * 9000, write_timeout_s=0.2) as server:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", server.port))
        body = b'{"prompt":"hi","stream":true,"max_tokens":9000,"n":8,"logprobs":5}'
        request = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
        await asyncio.get_running_loop().sock_sendall(client, request)
        await eventually(lambda: server.engine.calls)
        await eventually(lambda: not server.http.connections)
        client.close()


async def test_slow_but_steady_upload_within_its_time_is_served(start):
    body = b'{"prompt":"hi"}'
    async with start(header_timeout_s=0.1, body_timeout_s=20) as server:
        reader, writer = await sending(server.port, POST + b"Content-Length: %d\r\n\r\n" % len(body))
        for byte in body:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)
        assert b" 200 " in await reader.readline()
        writer.close()


# ---------------------------------------------------------------- bodies that are refused


@pytest.mark.parametrize("framing", [b"Content-Length: 30000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
async def test_body_without_a_key_is_refused_before_it_is_read(start, framing):
    async with start(keys=[KEY], **QUICK) as server:
        reader, writer = await sending(server.port, POST + framing)
        answer = await reader.read()
        assert b" 401 " in answer
        assert b"invalid_api_key" in answer
        writer.close()


async def test_answer_reaches_a_client_that_is_still_sending(start):
    async with start(keys=[KEY]) as server:
        assert (await server.client.post("/v1/completions", content=b"x" * 20_000_000)).status_code == 401
    async with start(limits=ServiceLimits(max_body_bytes=1000)) as server:
        assert (await server.client.post("/v1/completions", content=b"x" * 20_000_000)).status_code == 413
        assert (await server.client.post("/nothing", content=b"x" * 20_000_000)).status_code == 404
        assert (await server.complete()).status_code == 200


async def test_small_refused_bodies_leave_the_connection_usable(start):
    async with start(keys=[KEY]) as server:
        request = POST + b"Content-Length: 2\r\n\r\n{}"
        reader, writer = await sending(server.port, request * 3 + GET)
        answer = b""
        while b" 200 " not in answer:
            answer += await reader.read(65536)
        assert answer.count(b" 401 ") == 3
        writer.close()


# ---------------------------------------------------------------- connections


async def test_connections_beyond_the_limit_are_503_and_logged_in_one_line(start, caplog):
    async with start(max_connections=5) as server:
        held = await stalled(server.port, POST + b"Content-Length: 10\r\n\r\n", 5)
        for _ in range(20):
            reader, writer = await sending(server.port, GET)
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"too_many_connections" in answer
            assert b"retry-after: 1" in answer
            writer.close()
        for _, writer in held:
            writer.close()
    lines = [record for record in caplog.records if "refused or dropped" in record.getMessage()]
    assert len(lines) == 1
    assert "--max-connections" in lines[0].getMessage()


async def test_stalled_connections_make_room_for_new_ones(start):
    async with start(max_connections=20) as server:
        held = await stalled(server.port, POST + b"Content-Length: 10\r\n\r\n", 10)
        held += await stalled(server.port, b"GET / HT", 5)
        held += await stalled(server.port, b"", 5)
        await asyncio.sleep(1.2)
        assert (await server.client.get("/health")).status_code == 200
        assert (await server.complete()).status_code == 200
        for _, writer in held:
            writer.close()


async def test_connection_with_a_key_is_dropped_after_those_without(start, eventually):
    async with start(max_connections=20, keys=[KEY]) as server:
        await server.client.get("/v1/models", headers={"x-api-key": KEY})
        held = await stalled(server.port, b"", 19)
        await asyncio.sleep(1.2)
        late = await sending(server.port, GET)
        assert b" 200 " in await late[0].readline()
        assert any(connection.has_passed for connection in server.http.connections)
        for _, writer in [*held, late]:
            writer.close()


async def test_running_requests_are_never_dropped_for_new_connections(tokenizer, make_state):
    engine = FakeEngine(says(tokenizer, "hello world!"), stops_after=1)
    state = make_state(served(engine, tokenizer))
    async with running(state, limits=ConnectionLimits(max_connections=2)) as server:
        streams = [asyncio.create_task(server.complete()) for _ in range(2)]
        await asyncio.sleep(1.2)
        reader, writer = await sending(server.port, GET)
        assert b" 503 " in await reader.readline()
        writer.close()
        assert not any(stream.done() for stream in streams)
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)


async def test_server_without_file_descriptors_accepts_again_later(start, monkeypatch, caplog, eventually):
    async with start() as server:

        class Exhausted:
            def __init__(self, listener):
                self.listener = listener
                self.num_failures = 5

            def accept(self):
                if self.num_failures:
                    self.num_failures -= 1
                    raise OSError(errno.EMFILE, "Too many open files")
                return self.listener.accept()

            def fileno(self):
                return self.listener.fileno()

        server.http._listener = Exhausted(server.http._listener)
        assert (await server.client.get("/health")).status_code == 200
        assert server.http._listener.num_failures == 0
    lines = [record for record in caplog.records if "Too many open files" in record.getMessage()]
    assert len(lines) == 1


async def test_limit_of_open_files_lowers_the_limit_of_connections(start, monkeypatch, caplog):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (400, 400))
    async with start() as server:
        assert 8 <= server.http._max_connections < 400 - 64
    assert "max_connections=4096 is lowered" in caplog.text


# ---------------------------------------------------------------- memory


async def test_bodies_in_flight_are_bounded_and_given_back(start, eventually):
    async with start(max_body_bytes_in_flight=100_000) as server:
        half = POST + b"Content-Length: 80000\r\n\r\n" + b"x" * 60_000
        first = await sending(server.port, half)
        await eventually(lambda: server.http.budget.num_bytes == 60_000)
        second = await sending(server.port, half)
        assert b" 503 " in await asyncio.wait_for(second[0].readline(), 20)
        assert (await server.complete()).status_code == 200
        for _, writer in (first, second):
            writer.close()
        await eventually(lambda: server.http.budget.num_bytes == 0)
        response = await server.client.post("/v1/completions", content=b"x" * 90_000)
        assert response.status_code == 415, "the body was read, and is no JSON"
        await eventually(lambda: server.http.budget.num_bytes == 0)


async def test_body_that_arrives_slowest_gives_way():
    clock = [0.0]
    budget = BodyBudget(1000, lambda: clock[0])
    dropped = []
    slow = budget.open_share(lambda: dropped.append("slow"))
    slow.take(600)
    clock[0] = 60.0
    fast = budget.open_share(lambda: dropped.append("fast"))
    clock[0] = 66.0
    fast.take(300)
    fast.take(300)
    assert dropped == ["slow"]
    assert budget.num_bytes == 600
    late = budget.open_share(lambda: dropped.append("late"))
    with pytest.raises(HttpError) as refused:
        late.take(500)
    assert refused.value.status == 503
    fast.note_arrived()
    clock[0] = 1000.0
    with pytest.raises(HttpError):
        late.take(500)
    fast.close()
    fast.close()
    late.take(1000)
    assert dropped == ["slow"]
    late.close()
    assert budget.num_bytes == 0


# ---------------------------------------------------------------- what metrics count


async def test_connections_that_are_refused_or_dropped_are_counted_by_reason(start):
    async with start(max_connections=2) as server:

        async def count(reason):
            lines = (await server.client.get("/metrics")).text.splitlines()
            name = f'plugserve_http_connections_refused_total{{reason="{reason}"}} '
            return next((float(line.removeprefix(name)) for line in lines if line.startswith(name)), 0.0)

        assert await count("limit") == 0
        held = await stalled(server.port, POST + b"Content-Length: 10\r\n\r\n", 1)
        for _ in range(3):
            reader, writer = await sending(server.port, GET)
            assert b" 503 " in await reader.readline()
            writer.close()
        assert await count("limit") == 3
        await asyncio.sleep(1.2)
        late = await sending(server.port, GET)
        assert b" 200 " in await late[0].readline()
        assert await count("dropped_for_new") >= 1
        for _, writer in [*held, late]:
            writer.close()
