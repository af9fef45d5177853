"""Where spans go, and with what protocol."""

import asyncio

import pytest

from plugserve.core.errors import ConfigError
from plugserve.core.settings.settings import Settings
from plugserve.server.operations.tracing.destination import GRPC, HTTP, destination
from plugserve.server.operations.tracing.make_tracer import make_tracer
from plugserve.server.operations.tracing.tracer import Work
from tests.otlp_receiver import OtlpReceiver

BASE, OWN = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"


@pytest.mark.parametrize(
    ("endpoint", "environment", "found"),
    [
        (None, {}, None),
        ("http://h:4318", {}, (HTTP, "http://h:4318/v1/traces", "http://h:4318/v1/traces")),
        ("http://h:4318/", {}, (HTTP, "http://h:4318/v1/traces", "http://h:4318/v1/traces")),
        ("http://h/own/path", {}, (HTTP, "http://h/own/path", "http://h/own/path")),
        ("http://ann:pw@h:1", {}, (HTTP, "http://ann:pw@h:1/v1/traces", "http://h:1/v1/traces")),
        ("http://h:4317", {}, (GRPC, "http://h:4317", "http://h:4317")),
        ("h:4317", {}, (GRPC, "http://h:4317", "http://h:4317")),
        ("grpc://h:1", {}, (GRPC, "http://h:1", "http://h:1")),
        ("grpcs://h:1", {}, (GRPC, "https://h:1", "https://h:1")),
        ("http://h:1", {PROTOCOL: "grpc"}, (GRPC, "http://h:1", "http://h:1")),
        ("http://h:4317", {PROTOCOL: "http/protobuf"}, (HTTP, "http://h:4317/v1/traces", "http://h:4317/v1/traces")),
        (None, {BASE: "http://h:1/base"}, (HTTP, None, "http://h:1/base")),
        (None, {OWN: "http://h:1"}, (HTTP, None, "http://h:1")),
        (None, {BASE: "http://h:4317"}, (GRPC, None, "http://h:4317")),
        (None, {"OTEL_TRACES_EXPORTER": "otlp"}, (HTTP, None, "http://localhost:4318/v1/traces")),
        (None, {"OTEL_TRACES_EXPORTER": "none", BASE: "http://h:1"}, None),
        (None, {BASE: "http://h:1", "OTEL_SDK_DISABLED": "true"}, None),
        ("http://h:1", {"OTEL_SDK_DISABLED": "TRUE"}, None),
    ],
)
def test_where_spans_go(endpoint, environment, found):
    to = destination(endpoint, environment)
    assert found == (None if to is None else (to.protocol, to.url, to.shown))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({BASE: "http://h:1", PROTOCOL: "http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL must be grpc or http/protobuf"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER must be otlp or none, got 'zipkin'"),
    ],
)
def test_variables_that_can_not_be_followed_are_refused(environment, message):
    with pytest.raises(ConfigError, match=message):
        destination(None, environment)


def test_grpc_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setattr("plugserve.server.operations.tracing.destination.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'plugserve\[grpc\]'"):
        destination("grpc://h:4317", {})


async def test_spans_of_a_plugins_own_tracing_are_sent_as_well(monkeypatch):
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    with OtlpReceiver() as receiver:
        make_tracer(Settings(otlp_traces_endpoint=receiver.url), {})
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=receiver.url + "/v1/traces")))
        provider.get_tracer("a plugin").start_span("its own").end()
        assert [span.name for span in receiver.spans] == ["its own"]


@pytest.mark.parametrize("protocol", [HTTP, GRPC])
async def test_sdk_reads_its_variables(monkeypatch, protocol):
    with OtlpReceiver(grpc_port=0) as receiver:
        url = receiver.url if protocol == HTTP else receiver.grpc_url.replace("grpc:", "http:")
        environment = {
            BASE: url,
            PROTOCOL: protocol,
            "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=a%20b",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_SERVICE_NAME": "mine",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test,service.name=lost,service.instance.id=i",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        tracer = make_tracer(Settings(), environment, part="worker-0")
        tracer.record(Work("load m", 1.0, 3.0, {"a": 1}, [Work("read", 1.0, 2.0), Work("warm up", 2.0, 3.0)]))
        await asyncio.to_thread(tracer.shutdown)
        (top,) = receiver.trees()
        assert [child.name for child in top.children] == ["read", "warm up"]
        assert top.end_ns - top.start_ns == pytest.approx(2e9, abs=1e3)
        assert top.resource["service.name"] == "mine"
        assert top.resource["deployment.environment.name"] == "test"
        assert top.resource["service.instance.id"] == "i"
        assert receiver.num_requests == 2
        assert receiver.headers[0]["x-tenant"] == "a b"
        jaeger = receiver.jaeger("mine")["data"]
        assert [span["operationName"] for span in jaeger[0]["spans"]] == ["load m", "read", "warm up"]
