"""A server, and a router before it, whose spans go to a collector over HTTP and gRPC; systemd's end of sd_notify."""

import importlib.util
import json
import signal
import socket
import threading
import time
from contextlib import contextmanager

import httpx
import pytest

from tests.e2e.live_server import LiveServer, eventually
from tests.otlp_receiver import OtlpReceiver

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("opentelemetry.exporter.otlp.proto.grpc") is None, reason="the extra [grpc] is missing"
)

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CONTEXT = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
SMALL = ("--num-gpu-blocks-override", "24", "--block-size", "16", "--max-model-len", "256", "--max-num-seqs", "8")


@contextmanager
def service_manager(path):
    """A list that fills with what is sent to NOTIFY_SOCKET."""
    told = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))

        def listen():
            while data := listener.recv(4096):
                told.append(data.decode())

        threading.Thread(target=listen, daemon=True).start()
        yield told
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", str(path))


@pytest.fixture(scope="module", params=["http", "grpc"])
def scene(request, tmp_path_factory, smollm2_gguf):
    """(server, receiver, what systemd was told) after its start, with few KV blocks and JSON logs."""
    folder = tmp_path_factory.mktemp("traced")
    with OtlpReceiver(grpc_port=0) as receiver, service_manager(folder / "notify") as told:
        url = receiver.url if request.param == "http" else receiver.grpc_url
        env = {
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "OTEL_SERVICE_NAME": "traced",
            "NOTIFY_SOCKET": str(folder / "notify"),
            "WATCHDOG_USEC": "1000000",
        }
        with LiveServer(*SMALL, "--otlp-traces-endpoint", url, "--log-format", "json", env=env) as server:
            yield server, receiver, told


def requests_of(receiver, names):
    """Wait for the trees of requests whose ids are names; by id."""

    def found(spans):
        known = {span.attributes.get("plugserve.request.id") for span in spans}
        return set(names) <= known

    receiver.wait(found)
    return {tree.attributes.get("plugserve.request.id"): tree for tree in receiver.trees()}


def test_start_is_traced_to_its_stages(scene):
    _, receiver, _ = scene
    receiver.wait(lambda spans: any(span.name.startswith("load ") for span in spans))
    (load,) = [tree for tree in receiver.trees() if tree.name.startswith("load ")]
    assert (load.service, load.resource["service.instance.id"]) == ("traced", "supervisor")
    stages = load.child("start engine").children
    assert [stage.name for stage in stages] == ["load plugins", "read weights", "warm up"]
    assert all(stage.is_inside(load) for stage in stages)


def test_requests_of_each_kind_have_their_trees(scene):
    server, receiver, _ = scene
    ask = {"prompt": "One, two, three", "temperature": 0, "ignore_eos": True}
    with httpx.Client(base_url=server.url, timeout=120) as client:

        def complete(name, **fields):
            return client.post("/v1/completions", json={**ask, **fields}, headers={**CONTEXT, "x-request-id": name})

        assert complete("plain", max_tokens=8).headers["x-trace-id"] == TRACE
        assert b"[DONE]" in complete("streamed", max_tokens=8, stream=True).content
        assert complete("refused", max_tokens=8, temperature=9).status_code == 400
        body = {**ask, "max_tokens": 200, "stream": True}
        headers = {"x-request-id": "aborted"}
        with client.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
            next(answer.iter_raw())
        threads = [threading.Thread(target=complete, args=(f"crowd-{n}",), kwargs={"max_tokens": 80}) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    trees = requests_of(receiver, ["plain", "streamed", "refused", "aborted", *(f"crowd-{n}" for n in range(6))])
    for name in ("plain", "streamed"):
        (generation,) = [child for child in trees[name].children if child.name.startswith("text_completion")]
        queue, prefill, decode = (generation.child(part) for part in ("queue", "prefill", "decode"))
        assert queue.end_ns == prefill.start_ns
        assert prefill.end_ns == decode.start_ns
        assert all(part.is_inside(generation) for part in (queue, prefill, decode))
        assert generation.attributes["gen_ai.usage.output_tokens"] == 8
        assert generation.attributes["gen_ai.latency.time_in_model_decode"] > 0
        assert (trees[name].trace_id, trees[name].parent_id) == (TRACE, CALLER)
    assert (trees["refused"].status, trees["refused"].attributes["http.response.status_code"]) == ("UNSET", 400)
    assert trees["aborted"].attributes["plugserve.client_disconnected"] is True
    decodes = [child.child("decode") for n in range(6) for child in trees[f"crowd-{n}"].children if child.children]
    preempted = [span for span in decodes if "preempted" in span.event_names]
    assert preempted, "no sequence was preempted"
    assert all("resumed" in span.event_names for span in preempted)
    jaeger = httpx.get(receiver.url + "/api/traces", params={"service": "traced"}).json()["data"]
    assert TRACE in {trace["traceID"] for trace in jaeger}


def test_log_lines_are_objects_with_the_trace_of_their_request(scene):
    server, _, _ = scene
    lines = [json.loads(line) for line in server.lines if line.strip()]
    finished = [line for line in lines if line["logger"] == "plugserve.request" and line.get("id") == "plain"]
    assert [line["trace_id"] for line in finished] == [TRACE]


def test_failed_request_ends_with_the_engines_error(scene):
    """The engine is killed while a stream runs."""
    server, receiver, _ = scene
    body = {"prompt": "x", "max_tokens": 200, "stream": True, "ignore_eos": True}
    headers = {"x-request-id": "failed"}
    with httpx.stream("POST", server.url + "/v1/completions", json=body, headers=headers, timeout=60) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        server.engine.kill()
        assert b"error" in b"".join(pieces)
    tree = requests_of(receiver, ["failed"])["failed"]
    assert (tree.status, tree.attributes["error.type"]) == ("ERROR", "EngineUnavailableError")
    (generation,) = [child for child in tree.children if child.name.startswith("text_completion")]
    assert generation.status == "ERROR"
    receiver.wait(lambda spans: any(span.name.startswith("restart engine") for span in spans), 60)


def test_router_and_server_share_a_trace(scene):
    server, receiver, _ = scene
    eventually(lambda: httpx.get(server.url + "/ready").status_code == 200)
    endpoint = ("--otlp-traces-endpoint", receiver.url)
    with LiveServer(*endpoint, command=["route", "--upstream", f"near={server.url}"]) as router:
        body = {"prompt": "x", "max_tokens": 2}
        answer = httpx.post(
            router.url + "/v1/completions", json=body, headers={"x-request-id": "routed", "baggage": "a=b"}, timeout=60
        )
        assert answer.status_code == 200
    trace_id = answer.headers["x-trace-id"]
    receiver.wait(lambda spans: sum(span.trace_id == trace_id for span in spans) >= 6)
    (top,) = [tree for tree in receiver.trees() if tree.trace_id == trace_id]
    assert top.resource["service.instance.id"] == "router"
    (attempt,) = top.children
    (served,) = attempt.children
    assert (attempt.kind, served.kind, served.service) == ("CLIENT", "SERVER", "traced")


def test_systemd_is_told_of_each_change(scene):
    server, _, told = scene
    assert told[0].startswith("READY=1\nSTATUS=serving on http") or told[0] == "WATCHDOG=1"
    before = len(told)
    server.process.send_signal(signal.SIGHUP)
    eventually(lambda: [line.split("\n")[0] for line in told[before:] if "WATCHDOG" not in line][:2] == [
        "RELOADING=1",
        "READY=1",
    ])  # fmt: skip
    num_signs = told.count("WATCHDOG=1")
    time.sleep(1.2)
    assert told.count("WATCHDOG=1") - num_signs >= 2
    assert server.stop() == 0
    eventually(lambda: any(line.startswith("STOPPING=1") for line in told))
