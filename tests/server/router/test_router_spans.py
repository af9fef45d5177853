"""The spans of a request that a router passes on, and the context that upstreams get."""

import asyncio

import pytest

from plugserve.core.settings.settings import Settings
from plugserve.server.operations.tracing.make_tracer import make_tracer
from tests.otlp_receiver import OtlpReceiver
from tests.server.router.stub_upstream import answers

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def receiver():
    with OtlpReceiver() as receiver:
        yield receiver


async def test_each_try_is_a_span_whose_context_the_upstream_gets(route, stubs, receiver):
    busy, ready = await stubs("busy", "ready")
    busy.answer = answers(b"{}", 503, retry_after="1")
    ready.answer = answers(b"{}")
    tracer = make_tracer(Settings(otlp_traces_endpoint=receiver.url), {}, part="router")
    async with route(busy, ready) as router:
        router.state.tracer = tracer
        headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "v=1", "baggage": "user=ann"}
        answer = await router.client.post("/v1/chat/completions?key=s", json={"model": "m"}, headers=headers)
    await asyncio.to_thread(tracer.shutdown)
    (top,) = receiver.trees()
    assert answer.status_code == 200
    assert answer.headers["x-trace-id"] == top.trace_id == TRACE
    assert (top.kind, top.parent_id, top.resource["service.instance.id"]) == ("SERVER", CALLER, "router")
    first, second = top.children
    assert [span.kind for span in (first, second)] == ["CLIENT", "CLIENT"]
    assert (first.status, first.attributes["error.type"], first.attributes["plugserve.upstream"]) == (
        "ERROR",
        "503",
        "busy",
    )
    assert second.attributes["http.request.resend_count"] == 1
    assert second.attributes["url.full"] == f"http://localhost:{ready.port}/v1/chat/completions"
    for stub, span in ((busy, first), (ready, second)):
        seen = stub.seen[-1].headers
        assert seen["traceparent"] == f"00-{TRACE}-{span.id}-01"
        assert (seen["tracestate"], seen["baggage"]) == ("v=1", "user=ann")
