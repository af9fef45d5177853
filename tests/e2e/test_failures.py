"""Killed processes and shutdown: every request ends, and no process remains."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from plugserve import cli
from plugserve.core.flight.flight_log import FlightLog
from plugserve.core.flight.flight_records import ALIVE
from tests.e2e.live_server import LiveServer, eventually, scripted_model


@pytest.fixture(scope="module")
def model(smollm2_gguf, tmp_path_factory):
    """Settings of a model that starts fast and whose answers take as long as they are told to."""
    return scripted_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(model):
    """Waits for requests when it is stopped; the last test stops it."""
    with LiveServer(*model, "--shutdown-timeout", "300") as live:
        yield live


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("# the first\nold-key\n")
    return file


@pytest.fixture(scope="module")
def two_workers(model, keys):
    """Has two workers and asks for keys; test_sigterm_during_a_stream_ends_all_processes stops it."""
    with LiveServer(*model, "--api-key-file", keys, "--api-workers", "2") as live:
        yield live


class LongStream(threading.Thread):
    """Streams a long completion; events are the parsed SSE messages until the stream's end or the connection's."""

    def __init__(self, url, key="none"):
        super().__init__(daemon=True)
        self.url, self.key = url, key
        self.events: list[object] = []
        self.ended_s = 0.0
        self.start()

    def run(self):
        body = {"prompt": "Count:", "max_tokens": 5000, "ignore_eos": True, "stream": True}
        with (
            contextlib.suppress(httpx.RemoteProtocolError),
            httpx.stream(
                "POST", self.url + "/v1/completions", json=body, headers={"x-api-key": self.key}, timeout=60
            ) as response,
        ):
            for line in response.iter_lines():
                if line.startswith("data: "):
                    self.events.append(line[6:] if line == "data: [DONE]" else json.loads(line[6:]))
        self.ended_s = time.monotonic()


class LongAnswer(threading.Thread):
    """Requests a long completion without a stream; response is the answer."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server = server
        self.response = None
        self.ended_s = 0.0
        self.start()

    def run(self):
        self.response = self.server.post("/v1/completions", prompt="Count:", max_tokens=5000, ignore_eos=True)
        self.ended_s = time.monotonic()


def test_killed_engine_fails_its_requests_at_once_and_restarts(server, state_home, capsys):
    stream, old = LongStream(server.url), server.engine.pid
    plain = LongAnswer(server)
    eventually(lambda: len(stream.events) > 3 and server.metric("num_requests_running") == 2)
    psutil.Process(old).kill()
    killed_s = time.monotonic()
    stream.join(10)
    plain.join(10)
    assert max(stream.ended_s, plain.ended_s) - killed_s < 3, "a client had to wait for its error"
    assert plain.response.status_code in (500, 503)
    assert set(plain.response.json()["error"]) == {"message", "type", "param", "code"}
    assert "error" in stream.events[-2]
    assert set(stream.events[-2]["error"]) == {"message", "type", "param", "code"}
    assert stream.events[-1] == "[DONE]"
    health = server.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "dead")
    refused = server.post("/v1/completions", prompt="x", max_tokens=1)
    assert refused.status_code == 503
    assert refused.json()["error"]["message"]
    eventually(lambda: server.get("/health").status_code == 200)
    assert server.engine.pid != old
    assert not psutil.pid_exists(old), "the dead engine was not reaped"
    assert "zombie" not in [child.status() for child in server.children()]
    assert server.complete("The capital of France is", 4).strip().startswith("Paris")
    assert server.metric("engine_restarts_total") == 1
    flights = (state_home / "plugserve" / "flights").glob("*.flight")
    [(kept, log)] = [(path, log) for path in flights if (log := FlightLog(path)).facts.pid == old]
    assert f"path={kept}: plugserve replay" in server.log
    found = [(bytes(one["route"]), one["first_token_s"] > 0, int(one["state"])) for one in log.requests()]
    assert found == [(b"/v1/completions", True, ALIVE)] * 2
    assert cli.main(["replay", str(kept), "--url", server.url, "--rate", "5"]) == 0
    text = capsys.readouterr().out
    assert "2 requests of" in text
    assert "2 had not ended" in text
    assert "failed" not in text


def test_killed_worker_is_replaced_and_its_requests_are_freed(server):
    stream, old = LongStream(server.url), server.worker.pid
    eventually(lambda: len(stream.events) > 3)
    free, restarts = server.metric("kv_blocks_free"), server.metric("engine_restarts_total")
    psutil.Process(old).kill()
    eventually(lambda: _status(server) == 200)
    assert server.worker.pid != old
    eventually(lambda: server.metric("num_requests_running") == 0)
    assert server.metric("kv_blocks_free") > free
    assert server.complete("The capital of France is", 4).strip().startswith("Paris")
    assert server.metric("engine_restarts_total") == restarts, "the new worker forgot the engine's restart before it"


def test_port_in_use_is_reported(server):
    port = server.url.rpartition(":")[2]
    live = LiveServer("--port", port)
    assert live.process.wait(30) == 2
    live._reader.join(5)
    assert f"port {port} on 127.0.0.1 is in use" in live.log


def test_second_signal_ends_the_shutdown_wait(server):
    stream = LongStream(server.url)
    eventually(lambda: len(stream.events) > 3)
    server.process.terminate()
    eventually(lambda: _status(server) != 200)
    assert server.process.poll() is None
    assert server.stop() == 0
    stream.join(5)
    assert stream.events[-1] == "[DONE]"


def test_sighup_stops_nothing_and_swaps_the_keys(two_workers, keys):
    live, pids = two_workers, {child.pid for child in two_workers.children()}

    def status(key):
        return httpx.get(live.url + "/v1/models", headers={"x-api-key": key}).status_code

    assert (status("old-key"), status("new-key")) == (200, 401)
    keys.write_text("\nnew-key\n")
    live.process.send_signal(signal.SIGHUP)
    eventually(lambda: live.log.count("reloaded num_keys=1") == 2)
    assert (status("old-key"), status("new-key")) == (401, 200)
    keys.write_text("# none\n")
    for child in live.children():
        child.send_signal(signal.SIGHUP)
    live.process.send_signal(signal.SIGHUP)
    eventually(lambda: "reload failed" in live.log and "contains no key" in live.log)
    assert (status("old-key"), status("new-key")) == (401, 200)
    assert {child.pid for child in live.children()} == pids
    keys.write_text("old-key\n")
    live.process.send_signal(signal.SIGHUP)
    eventually(lambda: live.log.count("reloaded num_keys=1") == 4)


def test_sigterm_during_a_stream_ends_all_processes(two_workers):
    stream = LongStream(two_workers.url, key="old-key")
    eventually(lambda: len(stream.events) > 3)
    children = two_workers.children()
    assert len(children) >= 3
    assert two_workers.stop() == 0
    stream.join(5)
    assert stream.events[-1] == "[DONE]"
    assert stream.events[-2]["error"]["code"] == "engine_unavailable"
    assert not any(event["choices"][0]["finish_reason"] for event in stream.events[:-2])
    eventually(lambda: not [child for child in children if child.is_running()], 5)


def test_a_killed_supervisor_leaves_no_children_and_no_key_on_disk(model):
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as place,  # sockets need short paths
        LiveServer(*model, "--api-key", "sk-left-behind", env={"TMPDIR": place}) as live,
    ):
        children = live.children()
        live.stop(signal.SIGKILL)
        eventually(lambda: not [child for child in children if child.is_running() and child.status() != "zombie"], 5)
        left = [path for path in Path(place).rglob("*") if path.is_file()]
        assert left, "a killed server can't remove its folder"
        assert not [path for path in left if b"sk-left-behind" in path.read_bytes()]


def test_sigterm_waits_for_requests_up_to_shutdown_timeout(model):
    with LiveServer(*model, "--shutdown-timeout", "20") as live:
        texts = []
        asking = threading.Thread(target=lambda: texts.append(live.complete("Once", 40, ignore_eos=True)))
        asking.start()
        eventually(lambda: live.metric("num_requests_running") == 1)
        assert live.stop() == 0
        asking.join(5)
        assert texts
        assert texts[0]


def _status(server):
    try:
        return server.get("/health").status_code
    except httpx.HTTPError:
        return 0


BAD_ROUTES = """
from plugserve import hookimpl

@hookimpl
def plugserve_register_routes(app):
    app.add_route("not a handler", "/x")
"""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "./no-such-model.gguf"], "no-such-model.gguf"),
        (["--max-model-len", "8000", "--num-gpu-blocks-override", "10"], "one request of --max-model-len 8000"),
        (["--device", "cuda"], "finds no CUDA device here"),
        (["--scheduler", "nope"], "nope"),
        (
            ["--reasoning-parser", "think-tag"],
            "--reasoning-parser think-tag: no active plugin provides it. Did",
        ),
        (["--tool-call-parser", "nope"], "There are: hermes, qwen, llama3-json, mistral, pythonic, generic-json"),
        (["--plugin", "{folder}/bad_routes.py"], "plugin 'bad-routes'"),
        (["--chat-template", "{{% if %}}"], "chat template"),
    ],
)
def test_failing_start_names_its_cause_in_one_line(args, message, smollm2_gguf, tmp_path):
    (tmp_path / "bad_routes.py").write_text(BAD_ROUTES)
    live = LiveServer(*(arg.format(folder=tmp_path) for arg in args))
    assert live.process.wait(60) == 2
    live._reader.join(5)
    errors = [line for line in live.lines if "plugserve: error:" in line]
    assert len(errors) == 1, live.log
    assert message in errors[0]
    assert "Traceback" not in live.log


def test_what_cannot_fit_is_refused_before_loading_with_the_ledger():
    words = ["--host", "127.0.0.1", "--port", "0", "--kv-cache-memory", "900TiB"]
    done = subprocess.run(
        [sys.executable, "-m", "plugserve", *words], capture_output=True, text=True, timeout=120, check=False
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 2
    assert "does not fit: it takes " in lines[-1]
    assert "the smallest change that makes it fit is --kv-cache-memory " in lines[-1]
    assert any("memory of " in line and "KV cache" in line for line in lines)
    assert not any("Loading" in line for line in lines)
