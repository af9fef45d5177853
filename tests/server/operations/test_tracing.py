"""One span a request, as a collector receives it."""

import asyncio
import subprocess
import sys

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from plugserve.server.operations.observers import NullTracer
from plugserve.server.operations.tracing import OtlpTracer, make_tracer, traces_url
from tests.server.pipeline.test_disconnects import send_request


class Sink:
    """A collector: spans are decoded OTLP protobufs."""

    def __init__(self):
        self.spans = []
        self.paths = set()

    def take(self, path, body):
        self.paths.add(path)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans


@pytest.fixture
async def sink():
    sink = Sink()

    async def handle(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length"))
        sink.take(head.split(" ")[1], await reader.readexactly(length))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    sink.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield sink
    server.close()


@pytest.fixture
def traced(serve, sink):
    tracer = make_tracer(sink.url, {})
    return serve, tracer, lambda: asyncio.to_thread(tracer.shutdown)


def attributes(span):
    values = {}
    for pair in span.attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        values[pair.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return values


async def test_span_follows_the_genai_conventions(traced, sink):
    serve, tracer, flush = traced
    async with serve(state={"tracer": tracer}) as server:
        answer = (await server.chat(model="model", temperature=0.5, top_p=0.9, seed=3, stop=["zz"], n=2)).json()
    await flush()
    (span,) = sink.spans
    assert sink.paths == {"/v1/traces"}
    assert span.name == "chat model"
    assert span.kind == span.SPAN_KIND_SERVER
    values = attributes(span)
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "plugserve",
        "gen_ai.request.model": "model",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.seed": 3,
        "gen_ai.request.stop_sequences": ["zz"],
        "gen_ai.request.choice.count": 2,
        "gen_ai.response.id": answer["id"],
        "gen_ai.response.model": "fake/model",
        "gen_ai.response.finish_reasons": ["stop", "stop"],
        "gen_ai.usage.input_tokens": answer["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": 8,
    }
    assert expected.items() <= values.items()
    assert values["gen_ai.server.time_to_first_token"] > 0
    assert span.end_time_unix_nano > span.start_time_unix_nano
    assert span.status.code == span.status.STATUS_CODE_UNSET


async def test_span_belongs_to_the_callers_trace(traced, sink):
    serve, tracer, flush = traced
    trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace_id}-{parent_id}-01", "tracestate": "vendor=1"}
    async with serve(state={"tracer": tracer}) as server:
        await server.client.post("/v1/completions", json={"prompt": "x"}, headers=headers)
    await flush()
    (span,) = sink.spans
    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.trace_state) == (trace_id, parent_id, "vendor=1")
    assert span.name == "text_completion fake/model"


async def test_failed_and_aborted_requests_end_their_spans(traced, sink, eventually):
    serve, tracer, flush = traced
    async with serve(state={"tracer": tracer}, fails_after=1) as server:
        await server.chat_events()
        await server.chat(temperature=9)
        server.engine.fails_after, server.engine.stops_after = None, 2
        _, writer = await send_request(server.port, "/v1/completions", {"prompt": "x", "stream": True})
        await eventually(lambda: len(server.engine.calls) == 2 and server.engine.calls[1].num_told == 2)
        writer.transport.abort()
        await eventually(lambda: server.engine.aborted)
    await flush()
    failed, refused, aborted = sink.spans
    assert attributes(failed)["error.type"] == "RequestFailedError"
    assert failed.status.code == failed.status.STATUS_CODE_ERROR
    assert attributes(refused)["error.type"] == "RequestError"
    assert attributes(aborted)["gen_ai.response.finish_reasons"] == ["abort"]
    assert attributes(aborted)["gen_ai.usage.output_tokens"] == 2


@pytest.mark.parametrize(
    ("endpoint", "environment", "url"),
    [
        (None, {}, None),
        ("http://h:4318", {}, "http://h:4318/v1/traces"),
        ("http://h:4318/", {}, "http://h:4318/v1/traces"),
        ("http://h:4318/v1/traces", {}, "http://h:4318/v1/traces"),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:1/base"}, "http://h:1/base/v1/traces"),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h:1/own"}, "http://h:1/own"),
        ("http://a:1", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b:1"}, "http://a:1/v1/traces"),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b:1", "OTEL_SDK_DISABLED": "true"}, None),
    ],
)
def test_where_spans_go(endpoint, environment, url):
    assert traces_url(endpoint, environment) == url


def test_without_an_endpoint_there_is_no_tracer():
    assert isinstance(make_tracer(None, {}), NullTracer)
    assert isinstance(make_tracer("http://127.0.0.1:1", {}), OtlpTracer)


def test_worker_imports_neither_torch_nor_opentelemetry():
    program = (
        "import sys, plugserve.server.worker.worker_process as w;"
        "from plugserve.server.operations.tracing import make_tracer;"
        "make_tracer(None, {});"
        "bad = [n for n in sys.modules if n.split('.')[0] in ('torch', 'transformers', 'opentelemetry', 'triton')];"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
