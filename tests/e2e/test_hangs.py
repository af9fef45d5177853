"""Processes that hang: /health is true within seconds, the log names the place, and what hangs is replaced."""

from __future__ import annotations

import contextlib
import re
import signal
import threading

import httpx
import psutil
import pytest

from tests.e2e.live_server import LiveServer, eventually, scripted_model

PLUGIN = """
import time
from plugserve import hookimpl
from plugserve.plugins.schedulers.fcfs import make_fcfs


class Looping:
    def __init__(self, inner):
        self._inner = inner
        self._loops = False

    def add(self, sequence):
        self._loops = self._loops or sequence.priority == 77
        self._inner.add(sequence)

    def remove(self, id):
        self._inner.remove(id)

    def schedule(self, budget):
        while self._loops:
            pass
        return self._inner.schedule(budget)


@hookimpl
def plugserve_schedulers():
    return {"looping": lambda context: Looping(make_fcfs(context))}


@hookimpl
def plugserve_authorize(request):
    time.sleep(float(request.headers.get("x-block", 0)))


@hookimpl
def plugserve_engine_started(engine):
    try:
        open(__file__ + ".started", "x").close()
    except FileExistsError:
        return
    time.sleep(4)  # at the first start only
"""


@pytest.fixture(scope="module")
def server(smollm2_gguf, tmp_path_factory):
    file = tmp_path_factory.mktemp("plugins") / "looping.py"
    file.write_text(PLUGIN)
    arguments = ["--plugin", file, "--scheduler", "looping", "--engine-hang-timeout", "5"]
    with LiveServer(*arguments, *scripted_model(file.parent)) as live:
        yield live


class Request(threading.Thread):
    """A request whose answer, or None for a connection that was closed, is at response."""

    def __init__(self, url, headers=None, **body):
        super().__init__(daemon=True)
        self.url, self.headers, self.body = url, headers or {}, {"prompt": "x", "max_tokens": 2, **body}
        self.response = None
        self.start()

    def run(self):
        with contextlib.suppress(httpx.HTTPError):
            self.response = httpx.post(self.url + "/v1/completions", json=self.body, headers=self.headers, timeout=120)


def _health(server, path="/health"):
    """Status and body; (0, {}) where no answer came."""
    try:
        response = httpx.get(server.url + path, timeout=3)
    except httpx.HTTPError:
        return 0, {}
    return response.status_code, response.json()


def _wait_until_hung(server):
    eventually(lambda: _health(server)[0] == 503)
    assert _health(server)[1]["status"] == "hung"
    status, body = _health(server, "/ready")
    assert (status, body["status"]) == (503, "hung")


def _line(server, *parts):
    """The one log line that holds all parts."""
    eventually(lambda: any(all(part in line for part in parts) for line in server.lines))
    return next(line for line in server.lines if all(part in line for part in parts))


def test_a_start_longer_than_the_hang_limit_is_no_hang(server):
    assert "hangs" not in server.log
    assert _health(server)[0] == 200


def test_a_scheduler_that_loops_is_seen_named_and_replaced(server):
    old = server.engine.pid
    request = Request(server.url, priority=77)
    _wait_until_hung(server)
    assert server.metric("engine_unhealthy") == 1
    assert server.metric("engine_heartbeat_age_seconds") > 1
    line = _line(server, "engine model=", "hangs: no heartbeat")
    assert "plugin=looping" in line
    assert "stack=[schedule (" in line
    request.join(60)
    assert request.response.status_code == 503
    assert request.response.json()["error"]["message"]
    eventually(lambda: _health(server)[0] == 200, 60)
    assert server.engine.pid != old
    assert server.complete("The capital of France is", 4).strip().startswith("Paris")
    assert server.metric("engine_hangs_total") == 1


def test_a_stopped_engine_is_seen_and_replaced(server):
    old = server.engine.pid
    psutil.Process(old).send_signal(signal.SIGSTOP)
    _wait_until_hung(server)
    assert "the process is stopped" in _line(server, "engine model=", "hangs: stopped by a signal")
    eventually(lambda: _health(server)[0] == 200, 60)
    assert not psutil.pid_exists(old)
    assert server.complete("Hi", 2)


def test_a_stopped_engine_that_goes_on_is_not_replaced(server):
    old = server.engine.pid
    psutil.Process(old).send_signal(signal.SIGSTOP)
    _wait_until_hung(server)
    psutil.Process(old).send_signal(signal.SIGCONT)
    eventually(lambda: _health(server)[0] == 200)
    assert server.engine.pid == old
    assert server.complete("Hi", 2)


def test_the_only_worker_that_blocks_is_seen_named_and_replaced(server):
    old = server.worker.pid
    Request(server.url, headers={"x-block": "1000"})
    _wait_until_hung(server)
    line = _line(server, "server worker index=0 hangs")
    assert "plugin=looping" in line
    assert "plugserve_authorize (" in line
    refused = server.post("/v1/completions", prompt="x", max_tokens=1)
    assert refused.status_code == 503
    eventually(lambda: _health(server)[0] == 200, 60)
    assert server.worker.pid != old
    assert server.complete("Hi", 2)


def test_a_sibling_of_a_blocked_worker_says_so(smollm2_gguf, tmp_path):
    (tmp_path / "looping.py").write_text(PLUGIN)
    (tmp_path / "looping.py.started").touch()
    plugin = ["--plugin", tmp_path / "looping.py"]
    with LiveServer(*plugin, *scripted_model(tmp_path), "--api-workers", "2") as live:
        Request(live.url, headers={"x-block": "6"})
        _wait_until_hung(live)
        assert len(_health(live)[1]["workers"]) == 1
        assert live.metric("worker_unhealthy") == 1
        assert live.complete("Hi", 2)
        eventually(lambda: _health(live)[0] == 200)
        assert "responds again" in live.log
        assert live.metric("worker_hangs_total") == 1


def test_a_start_that_hangs_ends_with_the_place(smollm2_gguf, tmp_path):
    file = tmp_path / "stuck.py"
    file.write_text(PLUGIN.replace("time.sleep(4)", "time.sleep(1000)"))
    live = LiveServer("--plugin", file, *scripted_model(tmp_path), "--engine-start-timeout", "8")
    assert live.process.wait(60) == 1
    live._reader.join(5)
    assert re.search(r"it hung: no heartbeat for \S+ s while starting in plugin 'stuck'", live.log)
    assert "--engine-start-timeout has passed" in live.log
    assert "Traceback" not in live.log
