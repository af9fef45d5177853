"""Every route that generates obeys every limit, calls every hook, counts in the metrics and ends its span."""

import asyncio
from dataclasses import dataclass, field

import pytest

from plugserve.core.contracts.requests import Refusal
from plugserve.core.errors import QueueFullError, RequestError
from plugserve.server.operations.service_limits import ServiceLimits
from plugserve.server.operations.tracing.tracer import NULL_TRACE, NullTracer
from plugserve.server.pipeline import exchange
from plugserve.server.worker.app import build_app
from tests.server.fakes import NoHooks
from tests.server.pipeline.test_disconnects import send_request


@dataclass(frozen=True)
class Route:
    """One way to ask. field holds the prompt."""

    name: str
    path: str
    field: str
    extra: dict = field(default_factory=dict)

    def body(self, prompt="hello", **fields):
        given = [{"role": "user", "content": prompt}] if self.field == "messages" else prompt
        return {self.field: given, **self.extra, **fields}


def plain_and_streamed(name, path, field, **extra):
    return [Route(name, path, field, extra), Route(f"{name} streamed", path, field, {**extra, "stream": True})]


ROUTES = [
    *plain_and_streamed("chat", "/v1/chat/completions", "messages"),
    *plain_and_streamed("completions", "/v1/completions", "prompt"),
    *plain_and_streamed("responses", "/v1/responses", "input"),
    *plain_and_streamed("messages", "/v1/messages", "messages", max_tokens=50),
    Route("embeddings", "/v1/embeddings", "input"),
    *plain_and_streamed("invocations: chat", "/invocations", "messages"),
    *plain_and_streamed("invocations: completions", "/invocations", "prompt"),
    Route("invocations: embeddings", "/invocations", "input"),
]
OF_PAIRS = {"/v1/rerank", "/rerank", "/v2/rerank", "/v1/score", "/score"}
"""These send two sequences or more; tests/server/api/test_encoders.py has their tests."""
every_route = pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)


class Span:
    is_recording = True

    def __init__(self, operation, model):
        self.operation = operation
        self.model = model
        self.attributes = {}
        self.ends = []

    def set(self, attributes):
        self.attributes |= attributes

    def finish(self, attributes, sequences=(), error=None):
        self.attributes |= attributes
        self.ends.append(error)


class Trace(type(NULL_TRACE)):
    def __init__(self, spans):
        self.spans = spans

    def generation(self, operation, model):
        self.spans.append(Span(operation, model))
        return self.spans[-1]


class Spans(NullTracer):
    """A tracer that keeps the spans of generations."""

    def __init__(self):
        self.spans = []

    def begin(self, headers, path=""):
        return Trace(self.spans)


class Records:
    """A trace recorder that keeps what it is given."""

    def __init__(self):
        self.sequences = []

    def note(self, sequences):
        self.sequences += sequences


@pytest.fixture
def observed(serve):
    """serve, with hooks, spans and records at hand."""

    def start(*, limits=None, **options):
        state = {"hooks": NoHooks(), "tracer": Spans(), "recorder": Records(), "limits": limits or ServiceLimits()}
        return serve(state=state, **options)

    return start


async def post(server, route, prompt="hello", headers=None, **fields):
    return await server.client.post(route.path, json=route.body(prompt, **fields), headers=headers)


def message_of(response):
    return response.json()["error"]["message"]


async def metrics_of(server):
    return (await server.client.get("/metrics")).text


def finished(reason):
    return f'plugserve_request_success_total{{finished_reason="{reason}",model_name="fake/model"}} 1.0'


async def expect_failure(server, response, status, *, is_counted):
    """One error is reported, the span ends with it, and no sequence is left."""
    state = server.state
    assert response.status_code == status, response.text
    assert [name for name, _ in state.hooks.told] == ["plugserve_error"]
    (span,) = state.tracer.spans
    assert [error is not None for error in span.ends] == [True]
    assert state.num_in_flight == 0
    assert (finished("error") in await metrics_of(server)) is is_counted


# ---------------------------------------------------------------- an answer


@every_route
async def test_answer_is_reported_counted_traced_and_recorded(observed, eventually, route):
    async with observed() as server:
        response = await post(server, route, user="ann", priority=3, unheard_of=1)
        assert response.status_code == 200, response.text
        assert "unheard_of" in response.headers["x-plugserve-ignored-fields"]
        assert response.headers["x-request-id"]
        hooks = server.state.hooks
        await eventually(lambda: hooks.told)
        ((name, told),) = hooks.told
        assert (name, told["request"].model, told["timings"].finish_reason) == (
            "plugserve_request_finished",
            "fake/model",
            "stop",
        )
        prompt_tokens = sum(len(call.prompt) for call in server.engine.calls)
        assert told["usage"].num_prompt_tokens == prompt_tokens
        assert told["timings"].queue_s == 0.25
        (span,) = server.state.tracer.spans
        assert span.ends == [None]
        assert span.attributes["gen_ai.usage.input_tokens"] == prompt_tokens
        assert span.attributes["gen_ai.response.model"] == "fake/model"
        metrics = await metrics_of(server)
        assert finished("stop") in metrics
        assert f'plugserve_prompt_tokens_total{{model_name="fake/model"}} {float(prompt_tokens)}' in metrics
        (record,) = server.state.recorder.sequences
        assert (record.priority, record.finish, len(record.prompt)) == (3, "stop", prompt_tokens)
        assert [call.priority for call in server.engine.calls] == [3]
        assert server.state.num_in_flight == 0


@every_route
async def test_plugin_sees_the_request_before_it_is_checked_and_may_replace_its_body(observed, route):
    async with observed() as server:
        seen = []

        def replacement(view):
            seen.append(view)
            return route.body("hello world", model="model")

        server.state.hooks.replacement = replacement
        assert (await post(server, route, "x", model="nonsense")).status_code == 200
        (view,) = seen
        assert (view.path, view.model, view.body["model"]) == (route.path, "nonsense", "nonsense")
        assert server.state.hooks.authorized[0].key == view.key
        assert len(server.engine.calls[0].prompt) > 1


@every_route
async def test_concurrent_requests_of_one_id_are_both_answered(observed, eventually, route):
    async with observed(step_s=0.01) as server:
        headers = {"X-Request-Id": "same"}
        responses = await asyncio.gather(*(post(server, route, headers=headers, request_id="same") for _ in range(3)))
        assert [response.status_code for response in responses] == [200] * 3
        assert {response.headers["x-request-id"] for response in responses} == {"same"}
        assert len({call.id for call in server.engine.calls}) == 3
        await eventually(lambda: len(server.state.hooks.told) == 3)
        assert len({told["request"].key for _, told in server.state.hooks.told}) == 3
        assert server.engine.aborted == []


# ---------------------------------------------------------------- refusals and faults


@every_route
async def test_refused_request_goes_no_further(observed, route):
    async with observed() as server:
        server.state.hooks.refusal = Refusal(403, "Not you.", code="forbidden")
        response = await post(server, route)
        assert (response.status_code, message_of(response)) == (403, "Not you.")
        assert not server.engine.calls
        assert not server.state.tracer.spans


@every_route
async def test_plugins_refusal_of_a_body_is_an_error(observed, route):
    async with observed() as server:

        def refuse(view):
            raise RequestError("Not this.", status=422)

        server.state.hooks.replacement = refuse
        response = await post(server, route)
        assert message_of(response) == "Not this."
        await expect_failure(server, response, 422, is_counted=False)


@every_route
@pytest.mark.parametrize(
    ("fields", "status"), [({"model": "other"}, 404), ({"model": 5}, 400), ({"priority": "high"}, 400)]
)
async def test_clients_fault_is_reported_and_reaches_no_engine(observed, route, fields, status):
    async with observed() as server:
        await expect_failure(server, await post(server, route, **fields), status, is_counted=False)
        assert not server.engine.calls


@every_route
@pytest.mark.parametrize(
    ("content", "media_type", "status"), [(b"{", "application/json", 400), (b"{}", "text/plain", 415)]
)
async def test_body_that_is_no_json_is_reported(observed, route, content, media_type, status):
    async with observed() as server:
        response = await server.client.post(route.path, content=content, headers={"Content-Type": media_type})
        await expect_failure(server, response, status, is_counted=False)


# ---------------------------------------------------------------- limits


@every_route
async def test_prompt_longer_than_the_server_allows_is_refused(observed, route):
    async with observed(limits=ServiceLimits(max_prompt_tokens=10)) as server:
        response = await post(server, route, "x" * 20)
        assert "at most 10 tokens" in message_of(response)
        await expect_failure(server, response, 400, is_counted=False)
        assert not server.engine.calls


@pytest.mark.parametrize("prompt", ["x" * 20, [5] * 20, ["x", "x" * 20], [[5], [5] * 20]])
async def test_inputs_of_every_kind_obey_the_servers_limit(observed, prompt):
    async with observed(limits=ServiceLimits(max_prompt_tokens=3)) as server:
        for route in ROUTES:
            if route.field == "prompt" or "embeddings" in route.name:
                assert (await post(server, route, prompt)).status_code == 400
        assert not server.engine.calls


@every_route
async def test_prompt_longer_than_the_context_is_refused(observed, route):
    async with observed() as server:
        response = await post(server, route, "x" * 200)
        assert "maximum context length is 128" in message_of(response)
        await expect_failure(server, response, 400, is_counted=False)
        assert not server.engine.calls


@every_route
async def test_request_that_takes_too_long_ends_with_504(observed, route):
    async with observed(limits=ServiceLimits(timeout_s=0.75), stops_after=0) as server:
        response = await post(server, route)
        assert "0.75 s" in message_of(response)
        await expect_failure(server, response, 504, is_counted=True)
        assert server.engine.aborted == [1]


@every_route
async def test_body_larger_than_the_server_allows_is_refused(observed, route):
    async with observed(limits=ServiceLimits(max_body_bytes=300)) as server:
        assert (await post(server, route, "x" * 400)).status_code == 413
        assert not server.engine.calls
        assert (await post(server, route)).status_code == 200


@every_route
async def test_full_queue_is_503_with_retry_after(observed, route):
    async with observed() as server:

        def refuse(*arguments, **options):
            stream = start(*arguments, **options)
            stream.fail(QueueFullError("3 requests wait already"))
            return stream

        start, server.engine.generate = server.engine.generate, refuse
        response = await post(server, route)
        assert response.headers["retry-after"] == "1"
        assert message_of(response) == "3 requests wait already"
        await expect_failure(server, response, 503, is_counted=True)


@every_route
async def test_engine_that_is_down_is_503(observed, route):
    async with observed() as server:
        server.engine.state = "dead"
        response = await post(server, route)
        assert response.headers["retry-after"] == "1"
        await expect_failure(server, response, 503, is_counted=False)


@every_route
async def test_stopping_server_takes_no_request(observed, route):
    async with observed() as server:
        await server.state.drain(0)
        response = await post(server, route)
        await expect_failure(server, response, 503, is_counted=False)
        assert not server.engine.calls


@every_route
async def test_stopping_server_waits_for_a_request_in_flight(observed, eventually, route):
    async with observed(step_s=0.02) as server:
        request = asyncio.create_task(post(server, route))
        await eventually(lambda: server.engine.calls)
        await server.state.drain(10)
        assert (await request).status_code == 200


@every_route
async def test_engine_that_dies_ends_the_request(observed, eventually, route):
    async with observed(stops_after=0) as server:
        request = asyncio.create_task(post(server, route))
        await eventually(lambda: server.engine.calls)
        server.engine.die()
        await expect_failure(server, await request, 503, is_counted=True)


# ---------------------------------------------------------------- clients that leave


@every_route
async def test_client_that_leaves_is_reported_counted_and_traced(observed, eventually, route):
    async with observed(stops_after=0) as server:
        _, writer = await send_request(server.port, route.path, route.body())
        await eventually(lambda: server.engine.calls)
        writer.transport.abort()
        hooks = server.state.hooks
        await eventually(lambda: hooks.told)
        ((name, told),) = hooks.told
        assert (name, told["timings"].finish_reason) == ("plugserve_request_finished", "abort")
        assert told["usage"].num_prompt_tokens == len(server.engine.calls[0].prompt)
        assert server.engine.aborted == [1]
        (span,) = server.state.tracer.spans
        assert span.ends == [None]
        assert finished("abort") in await metrics_of(server)
        assert [record.finish for record in server.state.recorder.sequences] == ["abort"]
        assert server.state.num_in_flight == 0


async def test_every_generating_route_is_asked(make_state):
    app = build_app(make_state(), is_optimised=False)
    generating = {"/" + route.path for route in app.router.routes if route.handler.__module__ == exchange.__name__}
    assert generating | {"/invocations"} == {route.path for route in ROUTES} | OF_PAIRS
