"""What the supervisor answers while every worker hangs."""

import asyncio
import socket

import httpx
import pytest

from plugserve.server.supervisor.substitute_server import SubstituteServer


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as bound:
        bound.setblocking(False)
        yield bound


def _url(listener):
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_probes_and_requests_get_503_while_all_workers_hang(listener):
    server = SubstituteServer(listener)
    await server.follow({"0": "no heartbeat for 4.0 s while serving"}, 1)
    async with httpx.AsyncClient(base_url=_url(listener), timeout=10) as client:
        health = await client.get("/health?x=1")
        assert (health.status_code, health.json()["status"]) == (503, "hung")
        assert health.json()["workers"] == {"0": "no heartbeat for 4.0 s while serving"}
        assert (await client.get("/ready")).json()["ready"] is False
        assert (await client.head("/health")).status_code == 503
        refused = await client.post("/v1/completions", json={"prompt": "x" * 100_000})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_unavailable"
    server.stop()


async def test_it_leaves_the_socket_when_a_worker_moves(listener):
    server = SubstituteServer(listener)
    await server.follow({"0": "hung"}, 2)
    assert server._server is None
    await server.follow({"0": "hung", "1": "hung"}, 2)
    assert server._server is not None
    await server.follow({}, 2)
    assert server._server is None
    with socket.create_connection(listener.getsockname(), 5):  # still a listening socket
        pass


async def test_a_client_that_sends_no_head_is_let_go(listener, monkeypatch):
    monkeypatch.setattr("plugserve.server.supervisor.substitute_server._HEAD_S", 0.1)
    server = SubstituteServer(listener)
    await server.follow({"0": "hung"}, 1)
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(b"GET /health")
    assert await reader.read() == b""
    writer.close()
    server.stop()
