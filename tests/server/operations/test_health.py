"""What load balancers ask: /ready, /ping, /load, and the LoRA routes that say what is missing."""

import asyncio

import pytest

from plugserve.core.wire.heartbeats import SERVING, SILENT, STOPPED, WELL, Vitals


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
    server.state.requests.is_stopping = True
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


class _Liveness:
    """One engine and two workers, of which some hang."""

    def __init__(self, engine=WELL, worker=WELL):
        self.engine, self.worker = engine, worker

    def engines(self):
        return {"fake/model": Vitals(1, SERVING, 4.0, 60.0, 60.0, self.engine, 1)}

    def workers(self):
        return {
            "0": Vitals(1, SERVING, 0.1, 3.0, 60.0, WELL, 0),
            "1": Vitals(2, SERVING, 4.0, 60.0, 60.0, self.worker, 2),
        }


@pytest.mark.parametrize(
    ("liveness", "key"), [(_Liveness(engine=SILENT), "engines"), (_Liveness(worker=STOPPED), "workers")]
)
async def test_health_and_ready_say_503_and_what_hangs(server, liveness, key):
    server.state.liveness = liveness
    for path in ("/health", "/ping", "/ready"):
        response = await server.client.get(path)
        assert (response.status_code, response.json()["status"]) == (503, "hung")
        (hung,) = response.json()[key].values()
        assert hung.endswith("for 4.0 s while serving")


async def test_processes_that_move_are_healthy(server):
    server.state.liveness = _Liveness()
    for path in ("/health", "/ready"):
        assert (await server.client.get(path)).status_code == 200


async def test_a_dead_engine_is_called_dead_rather_than_hung(server):
    server.state.liveness = _Liveness(engine=SILENT)
    server.engine.state = "dead"
    assert (await server.client.get("/health")).json()["status"] == "dead"


async def test_metrics_say_how_old_heartbeats_are_and_what_hangs(server):
    server.state.liveness = _Liveness(engine=SILENT, worker=STOPPED)
    text = (await server.client.get("/metrics")).text
    for line in (
        'plugserve_engine_heartbeat_age_seconds{model_name="fake/model"} 4.0',
        'plugserve_engine_unhealthy{model_name="fake/model"} 1.0',
        'plugserve_engine_hangs_total{model_name="fake/model"} 1.0',
        'plugserve_worker_heartbeat_age_seconds{worker="1"} 4.0',
        'plugserve_worker_unhealthy{worker="0"} 0.0',
        'plugserve_worker_unhealthy{worker="1"} 1.0',
        'plugserve_worker_hangs_total{worker="1"} 2.0',
    ):
        assert line in text.splitlines()
