"""GET /live and /live/requests of a server whose engine records into the runtime folder."""

import asyncio
import json
import socket
import time

import msgspec
import pytest

from plugserve.core.flight.flight_file import FlightFile, FlightSizes
from plugserve.core.flight.flight_log import FlightFacts
from plugserve.core.wire.request_origin import RequestOrigin
from plugserve.core.wire.runtime_folder import RuntimeFolder
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from plugserve.plugins.schedulers.fcfs import make_fcfs
from plugserve.server.operations.access import Access
from plugserve.server.operations.live_sources import FolderSources
from plugserve.server.operations.worker_notes import OwnNotes, WorkerNotes
from plugserve.testing.contexts import scheduler_context
from plugserve.testing.engine_driver import EngineDriver
from tests.server.conftest import running
from tests.server.fakes import FakeEngine, says, served

FACTS = FlightFacts(model="m", version="1", pid=4711, started_s=1e9, epoch_offset_s=0.0, block_size=16)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "models.json").write_text("[]")
    return RuntimeFolder(tmp_path)


def recorded_engine(folder, **options):
    """An engine, at the time that it is now, that records as the first model's."""
    facts = msgspec.json.encode(FACTS)
    file = FlightFile.create(folder.flight_file(0), FlightSizes(32, 128), facts)
    engine = EngineDriver(make_fcfs(scheduler_context()), prefix_cache=BlockHashCache(), flight_file=file, **options)
    engine.now_s = time.monotonic() - 2.0
    return engine


@pytest.fixture
def server_of(make_state, tokenizer):
    def make(folder, **options):
        live = FolderSources(folder, OwnNotes(0, folder.worker_notes(0)), num_workers=2)
        return make_state(served(FakeEngine(says(tokenizer, "hello world!")), tokenizer), live=live, **options)

    return make


async def test_snapshot_shows_engine_latencies_plugins_and_all_workers(folder, server_of):
    engine = recorded_engine(folder)
    gate = "gate plugserve_authorize"
    notes = WorkerNotes(index=1, pid=99, requests=3, plugin_calls={gate: 5}, plugin_seconds={gate: 0.25})
    OwnNotes(1, folder.worker_notes(1)).write(notes)
    engine.send(range(1, 41), 6, origin=RequestOrigin("r1", "/v1/completions", 0.5))
    engine.run()
    engine.send(range(1, 41), 60)
    for _ in range(4):
        engine.step()
    async with running(server_of(folder)) as server:
        await server.client.get("/live?once=true")  # from now on details are written
        engine.now_s += 1.5
        engine.engine.flight.tick()
        await asyncio.sleep(0.6)  # an answer serves all who ask within half a second
        answer = await server.client.get("/live?once=true")
    body = answer.json()
    assert answer.headers["content-type"] == "application/json"
    (model,) = body["models"]
    (one,) = model["engines"]
    assert (model["state"], one["engine"], one["pid"]) == ("loaded", 0, 4711)
    assert (one["running"], one["waiting"], one["kv_blocks_total"]) == (1, 0, 64)
    assert one["kv_blocks_used"] == 3
    assert len(one["kv_map"]) == 88
    assert one["prefix_hit_rate"] == pytest.approx(32 / 80)
    assert one["generation_tokens_per_s"] > 0
    assert one["step_ms_p50"] is not None
    assert body["latency"]["ttft_ms"]["p50"] >= 260  # between 0.5 s more in the server, and none
    assert body["latency"]["e2e_ms"]["p99"] >= 500
    assert body["latency"]["itl_ms"]["p50"] == pytest.approx(10, rel=0.2)  # the driver's steps take 10 ms
    assert [(one["index"], one["requests"]) for one in body["workers"]] == [(0, 0), (1, 3)]
    plugins = {(one["name"], one["kind"]): one for one in body["plugins"]}
    assert plugins["gate", "plugserve_authorize"] == {
        "name": "gate", "kind": "plugserve_authorize", "calls": 5, "time_ms": 250.0, "failures": 0
    }  # fmt: skip
    assert plugins["FcfsScheduler", "schedule"]["calls"] == engine.engine.stats.plugin_calls["FcfsScheduler schedule"]


async def test_live_is_a_stream_of_snapshots_that_ends_with_the_server(folder, server_of):
    recorded_engine(folder)
    state = server_of(folder)
    async with running(state) as server, server.client.stream("GET", "/live") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.aiter_lines()
        first = await anext(lines)
        assert json.loads(first.removeprefix("data: "))["models"][0]["name"]
        state.requests.is_stopping = True
        async with asyncio.timeout(5):
            rest = [line async for line in lines]
        assert not any(rest)


async def test_last_requests_come_newest_first_with_the_reason_of_their_time(folder, server_of):
    engine = recorded_engine(folder)
    for number in range(5):
        engine.send(range(1, 20), 3, origin=RequestOrigin(f"r{number}", "/v1/completions", 0.0, 9.0 * (number == 4)))
        engine.run()
    state = server_of(folder)
    state.live.own.note_unread("r3", 12.0)
    async with running(state) as server:
        found = (await server.client.get("/live/requests?limit=3")).json()["requests"]
    assert [one["id"] for one in found] == ["r4", "r3", "r2"]
    assert found[0]["why"] == "It waited 9.0 s for its model to be loaded."
    assert found[1]["why"] == "Its client read slowly: 12.0 s of it the answer waited to be read."
    assert found[2]["why"] is None
    assert (found[2]["state"], found[2]["finish_reason"], found[2]["output_tokens"]) == ("done", "length", 3)


@pytest.mark.parametrize("limit", ["0", "1001", "x", "-1"])
async def test_limit_out_of_range_is_refused(folder, server_of, limit):
    async with running(server_of(folder)) as server:
        answer = await server.client.get(f"/live/requests?limit={limit}")
    assert answer.status_code == 400
    assert "from 1 to 1000" in answer.json()["error"]["message"]


async def test_live_needs_the_key(folder, server_of):
    async with running(server_of(folder, access=Access(keys=["secret"]))) as server:
        for path in ("/live", "/live/requests"):
            assert (await server.client.get(path)).status_code == 401
        allowed = await server.client.get("/live/requests", headers={"Authorization": "Bearer secret"})
    assert allowed.json() == {"requests": []}


async def test_engine_that_was_started_again_is_read_anew(folder, server_of):
    recorded_engine(folder).send([1, 2, 3], 2)
    async with running(server_of(folder)) as server:
        assert len((await server.client.get("/live/requests")).json()["requests"]) == 1
        recorded_engine(folder)
        assert (await server.client.get("/live/requests")).json()["requests"] == []


async def test_engine_that_records_nothing_shows_its_counts(make_state, tokenizer):
    state = make_state(served(FakeEngine(says(tokenizer, "hello")), tokenizer))
    async with running(state) as server:
        body = (await server.client.get("/live?once=true")).json()
        assert (await server.client.get("/live/requests")).json() == {"requests": []}
    assert body["models"][0]["engines"][0]["step_ms_p50"] is None
    assert body["workers"][0]["requests"] == 0


async def test_stream_that_waits_for_its_client_is_noted(make_state, tokenizer):
    engine = FakeEngine(says(tokenizer, "hello world " * 30_000), max_model_len=10**6, tokens_per_step=4000)
    state = make_state(served(engine, tokenizer))
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # connections inherit it
    async with running(state, listener=listener) as server:
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.setblocking(False)
        await asyncio.get_running_loop().sock_connect(slow, ("127.0.0.1", server.port))
        reader, writer = await asyncio.open_connection(sock=slow, limit=4096)
        body = json.dumps({"prompt": "x", "max_tokens": 10**5, "stream": True}).encode()
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Request-Id: slow\r\nConnection: close\r\n"
                     b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))  # fmt: skip
        await asyncio.sleep(0.6)
        async with asyncio.timeout(20):
            while await reader.read(65536):
                pass
        writer.close()
        await server.complete("quick", max_tokens=3)
    assert list(state.notes().unread_s) == ["slow"]
    assert state.notes().unread_s["slow"] > 0.1
