"""Debian's Prometheus scrapes a live server with the shipped configuration: the alerts' own tests, every query of both
dashboards, exemplars, and vLLM's test of gauges that fall back to 0."""

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from itertools import cycle
from pathlib import Path

import httpx
import pytest
import yaml

from tests.e2e.live_server import LiveServer, eventually, scripted_model

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "deploy" / "prometheus"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
VALUES = {"$__rate_interval": "10s", "$model": ".*", "$instance": ".*"}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    options = ["--api-workers", "2", "--goodput", "ttft:60000", "e2el:60000"]
    options += ["--otlp-traces-endpoint", "http://127.0.0.1:9/v1/traces"]  # traces are made, and can't be sent
    with LiveServer(*scripted_model(tmp_path_factory.mktemp("model"), step_s=0.01), *options) as server:
        yield server


@pytest.fixture(scope="module")
def prometheus(server, tmp_path_factory):
    """A function that asks a Prometheus with the shipped configuration, but every second, for a path of its API."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    port = free_port()
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for job, target in zip(
        config["scrape_configs"], (server.url.removeprefix("http://"), f"127.0.0.1:{port}"), strict=True
    ):
        job["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(SHIPPED / "alerts.yml", folder)
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage", "--log.level=error"]
    process = subprocess.Popen(command)

    def ask(path, **parameters):
        answer = httpx.get(f"http://127.0.0.1:{port}{path}", params=parameters, timeout=20)
        assert answer.status_code == 200, (path, parameters, answer.text)
        return answer.json()["data"]

    try:
        eventually(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
        eventually(lambda: httpx.get(f"http://127.0.0.1:{port}/-/ready").status_code == 200)
        yield ask
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def load(server, prometheus):
    """A few clients that ask all the time, until the tests end; some break off."""
    is_over = threading.Event()

    def run():
        for max_tokens in cycle((5, 20, 40)):
            if is_over.is_set():
                return
            server.complete("one two", max_tokens=max_tokens)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()

    def end():
        is_over.set()
        for thread in threads:
            thread.join()

    yield end
    end()


def queries():
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                yield f"{path.stem}: {panel['title']}: {target['legendFormat']}", target["expr"]


def test_alerts_pass_their_own_tests():
    for command in (["check", "config", "--syntax-only", "prometheus.yml"], ["check", "rules", "alerts.yml"]):
        subprocess.run(["promtool", *command], cwd=SHIPPED, check=True, capture_output=True)
    done = subprocess.run(["promtool", "test", "rules", "alerts_test.yml"], cwd=SHIPPED, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tested = {
        case["alertname"]
        for group in yaml.safe_load((SHIPPED / "alerts_test.yml").read_text())["tests"]
        for case in group["alert_rule_test"]
        if case.get("exp_alerts")
    }
    rules = yaml.safe_load((SHIPPED / "alerts.yml").read_text())["groups"][0]["rules"]
    assert tested == {rule["alert"] for rule in rules}
    page = (ROOT / "docs" / "metrics.md").read_text()
    for rule in rules:
        assert f"| `{rule['alert']}` | {rule['labels']['severity']} |" in page


def test_dashboards_are_those_that_the_tables_make():
    program = [sys.executable, "-c", "import make_dashboards as made, json; print(json.dumps(made.dashboards()))"]
    made = json.loads(subprocess.run(program, cwd=ROOT / "tools", check=True, capture_output=True).stdout)
    assert {path.name: path.read_text() for path in DASHBOARDS} == made, "python tools/make_dashboards.py"


def test_every_query_of_the_dashboards_returns_data(prometheus, load):
    asked = dict(queries())
    assert len(asked) > 100
    deadline = time.monotonic() + 40
    while asked and time.monotonic() < deadline:
        asked = {name: query for name, query in asked.items() if not has_data(prometheus, query)}
    assert asked == {}


def has_data(prometheus, query):
    for name, value in VALUES.items():
        query = query.replace(name, value)
    result = prometheus("/api/v1/query", query=query)["result"]
    return any(sample["value"][1] != "NaN" for sample in result)


def test_slow_requests_lead_to_their_traces(prometheus, load):
    def exemplars():
        found = prometheus(
            "/api/v1/query_exemplars",
            query="plugserve_time_to_first_token_seconds_bucket",
            start="2020-01-01T00:00:00Z",
            end="2100-01-01T00:00:00Z",
        )
        return [one["labels"]["trace_id"] for series in found for one in series["exemplars"]]

    eventually(exemplars)
    assert all(len(bytes.fromhex(trace_id)) == 16 for trace_id in exemplars())


def test_rules_are_evaluated_and_none_fires_on_a_server_that_is_well(prometheus, load):
    def health():
        return [rule["health"] for group in prometheus("/api/v1/rules")["groups"] for rule in group["rules"]]

    num_rules = (SHIPPED / "alerts.yml").read_text().count("- alert: ")
    eventually(lambda: health() == ["ok"] * num_rules)
    assert prometheus("/api/v1/alerts")["alerts"] == []


def test_gauges_fall_back_to_nothing_when_requests_have_ended(server, prometheus, load):
    """vLLM's test_abort_metrics_reset."""
    load()

    def gauges():
        lines = server.get("/metrics").text.splitlines()
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        return [float(line.split()[-1]) for name in names for line in lines if line.startswith(f"vllm:{name}{{")]

    body = {"prompt": "a b", "max_tokens": 1000, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=30) as answer:
        assert answer.status_code == 200
        eventually(lambda: gauges()[0] == 1.0 and gauges()[2] > 0)
    eventually(lambda: gauges() == [0.0, 0.0, 0.0])
