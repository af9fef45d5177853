"""What load balancers ask: /ready, /ping, /load, and the LoRA routes that say what is missing."""

import asyncio

import pytest


async def test_ready_when_a_request_would_be_admitted(server):
    for path in ("/ready", "/ping", "/health"):
        assert (await server.client.get(path)).status_code == 200
    assert (await server.client.get("/ready")).json() == {"ready": True}


@pytest.mark.parametrize("state", ["loading", "dead"])
async def test_not_ready_while_an_engine_is_not_up(server, state):
    server.engine.state = state
    response = await server.client.get("/ready")
    assert response.status_code == 503
    assert response.json() == {"ready": False, "status": state, "models": {"fake/model": state}}
    assert (await server.client.get("/ping")).status_code == 503


async def test_not_ready_when_stopping(server):
    server.state.is_stopping = True
    response = await server.client.get("/ready")
    assert (response.status_code, response.json()["status"]) == (503, "stopping")


async def test_load_counts_requests_in_flight(serve, eventually):
    async with serve(stops_after=1) as server:
        assert (await server.client.get("/load")).json() == {"server_load": 0}
        request = asyncio.create_task(server.chat("hello"))
        await eventually(lambda: server.engine.calls)
        assert (await server.client.get("/load")).json() == {"server_load": 1}
        request.cancel()
        await eventually(lambda: server.engine.aborted)
        assert (await server.client.get("/load")).json() == {"server_load": 0}


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"])
async def test_lora_routes_say_what_is_missing(server, path):
    response = await server.client.post(path, json={"lora_name": "a", "lora_path": "b"})
    assert response.status_code == 400
    assert "start it with --enable-lora" in response.json()["error"]["message"]
