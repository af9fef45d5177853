"""The spans of a request, as a collector receives them."""

import asyncio
import json
import logging
import subprocess
import sys
import time

import pytest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import (
    client_attributes,
    error_attributes,
    http_attributes,
    network_attributes,
    server_attributes,
    url_attributes,
    user_agent_attributes,
)

from plugserve.core.contracts.requests import RequestView
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.sequence_times import Preemption, SequenceTimes
from plugserve.server.api.completions.routes import CompletionApi
from plugserve.server.operations.tracing.make_tracer import make_tracer
from plugserve.server.operations.tracing.tracer import NullTracer
from plugserve.server.pipeline.direct import DirectRequests
from tests.otlp_receiver import OtlpReceiver
from tests.server.pipeline.test_disconnects import send_request

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
VLLM = {
    "gen_ai.request.id",
    "gen_ai.request.n",
    "gen_ai.usage.prompt_tokens",
    "gen_ai.usage.completion_tokens",
    "gen_ai.latency.time_to_first_token",
    "gen_ai.latency.e2e",
    "gen_ai.latency.time_in_queue",
    "gen_ai.latency.time_in_model_prefill",
    "gen_ai.latency.time_in_model_decode",
    "gen_ai.latency.time_in_model_inference",
}
"""The names of vLLM's tracing that the conventions don't have, or no longer have."""


@pytest.fixture
def receiver():
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture
def traced(serve, receiver, monkeypatch):
    """traced(...) as serve, with a tracer of these settings; trees() flushes it and gives the topmost spans."""

    class Traced:
        tracers = []

        def __call__(self, *args, settings=None, **options):
            monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
            given = Settings(otlp_traces_endpoint=receiver.url, **(settings or {}))
            self.tracers.append(make_tracer(given, {}, part="worker-0"))
            return serve(*args, state={"tracer": self.tracers[-1], **options.pop("state", {})}, **options)

        async def trees(self):
            await asyncio.sleep(0.02)  # the last hooks run in the background
            for tracer in self.tracers:
                await asyncio.to_thread(tracer.shutdown)
            return receiver.trees()

    return Traced()


def timed(script, *preemptions, fails=False):
    """script for an engine that sends its times: 1 s in the queue, 2 s of prefill, 4 s of decode, ending now."""

    def answer(call):
        now_s = time.monotonic()
        first = None if fails else now_s - 4
        call.stream.times = SequenceTimes(now_s - 7, now_s - 6, first, now_s, [
            Preemption(now_s + at, None if until is None else now_s + until, is_swapped=is_swapped)
            for at, until, is_swapped in preemptions
        ])  # fmt: skip
        return script

    return answer


def known_names():
    """Every attribute name of the conventions' own files that spans here may have."""
    modules = (
        gen_ai_attributes,
        client_attributes,
        error_attributes,
        http_attributes,
        network_attributes,
        server_attributes,
        url_attributes,
        user_agent_attributes,
    )
    return {value for module in modules for value in vars(module).values() if isinstance(value, str)}


def in_engine(span):
    """The children of a generation's span that are its time in the engine, by their begin."""
    return [child for child in span.children if child.name in ("queue", "prefill", "decode", "engine")]


async def test_chat_has_a_span_tree_of_the_conventions(traced, tokenizer):
    script = tokenizer.encode("hello world!").ids + [1]
    async with traced(timed(script)) as server:
        answer = await server.client.post(
            "/v1/chat/completions?verbose=secret",
            json={
                "messages": [{"role": "user", "content": "hi"}],
                "model": "model",
                "temperature": 0.5,
                "top_p": 0.9,
                "top_k": 7,
                "seed": 3,
                "stop": ["zz"],
                "n": 2,
            },
            headers={"x-request-id": "r-1"},
        )
    (top,) = await traced.trees()
    body = answer.json()
    assert answer.headers["x-trace-id"] == top.trace_id
    assert (top.name, top.kind, top.parent_id, top.status) == ("POST /v1/chat/completions", "SERVER", "", "UNSET")
    assert top.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "url.path": "/v1/chat/completions",
        "url.query": "verbose=REDACTED",
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "client.address": "127.0.0.1",
        "network.protocol.version": "1.1",
        "user_agent.original": top.attributes["user_agent.original"],
        "plugserve.request.id": "r-1",
    }
    chat = top.child("chat model")
    assert (chat.kind, chat.status) == ("INTERNAL", "UNSET")
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "plugserve",
        "gen_ai.request.model": "model",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 7.0,
        "gen_ai.request.seed": 3,
        "gen_ai.request.stop_sequences": ["zz"],
        "gen_ai.request.choice.count": 2,
        "gen_ai.output.type": "text",
        "gen_ai.response.id": body["id"],
        "gen_ai.response.model": "fake/model",
        "gen_ai.response.finish_reasons": ["stop", "stop"],
        "gen_ai.usage.input_tokens": body["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": 8,
        "gen_ai.latency.time_in_model_prefill": pytest.approx(2),
        "gen_ai.latency.time_in_model_decode": pytest.approx(4),
        "gen_ai.latency.time_in_model_inference": pytest.approx(6),
    }
    assert expected.items() <= chat.attributes.items()
    own = {name for span in (top, chat) for name in span.attributes if not name.startswith("plugserve.")}
    assert own - known_names() <= VLLM
    assert chat.attributes.keys() >= VLLM
    assert {"service.name": "plugserve", "service.instance.id": "worker-0"}.items() <= top.resource.items()
    assert chat.is_inside(top)
    engines = in_engine(chat)
    assert [span.name for span in engines] == ["queue", "queue", "prefill", "prefill", "decode", "decode"]
    assert {span.attributes["plugserve.choice.index"] for span in engines} == {0, 1}


async def test_queue_prefill_and_decode_follow_each_other_with_events(traced, tokenizer):
    script = tokenizer.encode("hello").ids + [1]
    preemptions = [(-5, -4.5, False), (-3, -2, True), (-1, None, False)]
    async with traced(timed(script, *preemptions)) as server:
        await server.complete_events()
    ((generation,),) = [top.children for top in await traced.trees()]
    assert generation.name == "text_completion fake/model"
    queue, prefill, decode = (generation.child(name) for name in ("queue", "prefill", "decode"))
    assert queue.end_ns == prefill.start_ns
    assert prefill.end_ns == decode.start_ns
    seconds = [(span.end_ns - span.start_ns) / 1e9 for span in (queue, prefill, decode)]
    assert seconds == pytest.approx([1, 2, 4], abs=1e-3)
    assert prefill.event_names == ["preempted", "resumed"]
    assert decode.event_names == ["first token", "preempted", "resumed", "preempted"]
    assert decode.events[1][2] == {"plugserve.preemption.kind": "swap"}
    assert decode.attributes == {"plugserve.generated_tokens": 2, "plugserve.preemptions": 3}
    assert prefill.attributes["plugserve.prompt_tokens"] == 2


async def test_trace_is_the_callers(traced):
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=1", "baggage": "user=ann%20b;p=1,team=x"}
    async with traced(settings={"trace_baggage": ["user"]}) as server:
        answer = await server.client.post("/v1/completions", json={"prompt": "x"}, headers=headers)
        metrics = await server.client.get("/metrics", headers={"accept": "application/openmetrics-text"})
    (top,) = await traced.trees()
    assert f'{{trace_id="{TRACE}"}}' in metrics.text
    assert (top.trace_id, top.parent_id, top.state) == (TRACE, CALLER, "vendor=1")
    assert answer.headers["x-trace-id"] == TRACE
    (generation,) = top.children
    assert top.attributes["user"] == generation.attributes["user"] == "ann b"
    assert "team" not in top.attributes


async def test_caller_and_sampler_decide_what_is_sampled(traced, monkeypatch):
    async with traced() as server:
        headers = {"traceparent": f"00-{TRACE}-{CALLER}-00"}
        answer = await server.client.post("/v1/completions", json={"prompt": "x"}, headers=headers)
        assert answer.headers["x-trace-id"] == TRACE
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    async with traced() as server:
        assert (await server.complete()).status_code == 200
    assert await traced.trees() == []


async def test_failed_refused_and_aborted_requests(traced, eventually):
    async with traced(fails_after=1) as server:
        await server.chat_events()
        await server.chat(temperature=9)
        assert (await server.client.get("/v1/nothing/here")).status_code == 404
        server.engine.fails_after = 0
        await server.chat()
        server.engine.fails_after, server.engine.stops_after = None, 2
        _, writer = await send_request(server.port, "/v1/completions", {"prompt": "x", "stream": True})
        await eventually(lambda: len(server.engine.calls) == 3 and server.engine.calls[2].num_told == 2)
        writer.transport.abort()
        await eventually(lambda: server.engine.aborted)
        await server.client.get("/health")
    broken, refused, unknown, failed, aborted = await traced.trees()
    assert (broken.status, broken.attributes["error.type"]) == ("ERROR", "RequestFailedError")
    assert broken.attributes["http.response.status_code"] == 200
    (chat,) = broken.children
    assert (chat.status, chat.message, chat.attributes["error.type"]) == (
        "ERROR",
        "the sampler saw NaN",
        "RequestFailedError",
    )
    assert (refused.status, refused.attributes["http.response.status_code"]) == ("UNSET", 400)
    assert "error.type" not in refused.attributes
    assert refused.children[0].attributes["error.type"] == "RequestError"
    assert (unknown.name, unknown.status, unknown.children) == ("GET", "UNSET", [])
    assert (failed.status, failed.attributes["error.type"]) == ("ERROR", "500")
    assert (aborted.status, aborted.attributes["plugserve.client_disconnected"]) == ("UNSET", True)
    (completion,) = aborted.children
    assert completion.attributes["gen_ai.response.finish_reasons"] == ["abort"]
    assert completion.attributes["gen_ai.usage.output_tokens"] == 2
    assert [span.name for span in in_engine(completion)] == ["queue", "prefill", "decode"]


async def test_request_aborted_before_its_first_token_has_one_span_in_the_engine(traced, eventually):
    async with traced(stops_after=0) as server:
        _, writer = await send_request(server.port, "/v1/completions", {"prompt": "x", "stream": True})
        await eventually(lambda: server.engine.calls)
        writer.transport.abort()
        await eventually(lambda: server.engine.aborted)
    ((completion,),) = [top.children for top in await traced.trees()]
    assert [span.name for span in in_engine(completion)] == ["engine"]


async def test_long_calls_of_plugins_are_spans_where_they_happened(traced):
    async with traced() as server:
        hooks = server.state.hooks
        received = hooks.request_received

        async def slow(request):
            await asyncio.sleep(0.002)
            hooks.listener.spent("house", "plugserve_request_received", 0.002)
            hooks.listener.spent("house", "plugserve_sampling_params", 0.0001)
            return await received(request)

        async def ended(request, outcome):
            hooks.listener.spent("house", "plugserve_request_ended", 0.5)

        hooks.request_received, hooks.request_ended = slow, ended
        await server.complete()
    (top,) = await traced.trees()
    (generation,) = [span for span in top.children if span.name.startswith("text_completion")]
    call = generation.child("house plugserve_request_received")
    assert call.attributes == {"plugserve.plugin": "house", "plugserve.hook": "plugserve_request_received"}
    assert top.child("house plugserve_request_ended")
    assert not [span for span in generation.children if "sampling" in span.name]


async def test_detailed_traces_have_short_steps_as_well(traced):
    async with traced(settings={"collect_detailed_traces": "model,worker"}) as server:
        await server.complete()
    (top,) = await traced.trees()
    assert {"wait for model", "make prompt"} <= {span.name for span in top.children[0].children}


async def test_values_that_otlp_does_not_take_lose_no_span(traced):
    async with traced() as server:
        body = {"prompt": "x", "seed": 2**63 - 1, "stop": ["\ud800", "é" * 9000], "model": "fake/model"}
        answer = await server.client.post(
            "/v1/completions", content=json.dumps(body), headers={"content-type": "application/json"}
        )
        assert answer.status_code in (200, 400)
        await server.client.post("/v1/completions", json={"prompt": "x"}, headers={"user-agent": b"\xff\xfe"})
    assert len(await traced.trees()) == 2


async def test_collector_that_is_away_is_logged_once_a_minute_and_no_request_fails(traced, receiver, caplog):
    receiver.status = 400
    async with traced() as server:
        with caplog.at_level(logging.WARNING, "plugserve"):
            for _ in range(3):
                assert (await server.complete()).status_code == 200
                await traced.trees()
    lines = [record.getMessage() for record in caplog.records if "spans are not sent" in record.getMessage()]
    assert len(lines) == 1
    assert receiver.spans == []


async def test_requests_without_http_have_a_generation_at_the_top(traced):
    async with traced() as server:
        view = RequestView("line-1", "/v1/completions", "POST", {"traceparent": f"00-{TRACE}-{CALLER}-01"}, "")
        await DirectRequests(server.state).response(CompletionApi(), view, {"prompt": "x"})
    (top,) = await traced.trees()
    assert (top.name, top.trace_id, top.parent_id) == ("text_completion fake/model", TRACE, CALLER)
    assert top.children


def test_without_an_endpoint_there_is_no_tracer():
    assert isinstance(make_tracer(Settings(), {}), NullTracer)


def test_worker_imports_neither_torch_nor_opentelemetry():
    program = (
        "import sys, plugserve.server.worker.worker_process as w;"
        "from plugserve.server.operations.tracing.make_tracer import make_tracer;"
        "from plugserve.core.settings.settings import Settings;"
        "make_tracer(Settings(), {});"
        "bad = [n for n in sys.modules if n.split('.')[0] in ('torch', 'transformers', 'opentelemetry', 'triton')];"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
