"""Whatever becomes of a request that plugserve_authorize was asked about, plugserve_request_ended is called once."""

from __future__ import annotations

import asyncio

import pytest

from plugserve import Identity, Refusal
from plugserve.core.plugin_system.plugin_guard import PluginGuard

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, EMBEDDINGS = "/v1/messages", "/v1/embeddings"
CHAT_BODY = {"messages": [{"role": "user", "content": "hi"}]}
ANSWERED = [
    (CHAT, CHAT_BODY),
    (CHAT, CHAT_BODY | {"stream": True}),
    (COMPLETIONS, {"prompt": "hi"}),
    (RESPONSES, {"input": "hi"}),
    (MESSAGES, CHAT_BODY | {"max_tokens": 4}),
    ("/tokenize", {"prompt": "hi"}),
]


async def ended(server, eventually):
    """The one end that was noted, as (path, outcome)."""
    hooks = server.state.hooks
    await eventually(lambda: hooks.ended)
    assert len(hooks.ended) == len(hooks.authorized) == 1
    (view, outcome), asked = hooks.ended[0], hooks.authorized[0]
    assert view.key == asked.key
    assert view.state is asked.state
    return view.path, outcome


@pytest.mark.parametrize(("path", "body"), ANSWERED)
async def test_answered_request_ends_with_200(server, eventually, path, body):
    assert (await server.client.post(path, json=body)).status_code == 200
    ended_path, outcome = await ended(server, eventually)
    assert (ended_path, outcome.status, outcome.is_complete, outcome.error) == (path, 200, True, None)
    assert (outcome.usage is None) == (path == "/tokenize")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/models", None, 200),
        ("GET", "/v1/responses/resp_1", None, 404),
        ("GET", "/nowhere", None, 404),
        ("PUT", CHAT, {}, 405),
        ("POST", CHAT, {"messages": 5}, 400),
        ("POST", COMPLETIONS, {"prompt": "hi", "model": "unknown"}, 404),
        ("POST", EMBEDDINGS, {"input": []}, 400),
    ],
)
async def test_other_ends_are_ends_too(server, eventually, method, path, body, status):
    response = await server.client.request(method, path, json=body)
    assert response.status_code == status
    _, outcome = await ended(server, eventually)
    assert (outcome.status, outcome.is_complete) == (status, True)


async def test_refused_request_ends(server, eventually):
    server.state.hooks.refusal = Refusal(403, "no")
    assert (await server.client.post(COMPLETIONS, json={"prompt": "hi"})).status_code == 403
    _, outcome = await ended(server, eventually)
    assert (outcome.status, outcome.usage) == (403, None)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_request_whose_client_leaves_ends(serve, eventually, is_stream):
    async with serve(stops_after=2) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        body = b'{"prompt":"x","max_tokens":100%s}' % (b',"stream":true' if is_stream else b"")
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await eventually(lambda: server.engine.calls)
        assert not server.state.hooks.ended
        writer.close()
        _, outcome = await ended(server, eventually)
        assert not outcome.is_complete
        assert outcome.timings.finish_reason == "abort"


async def test_end_comes_after_the_other_hooks(server, eventually):
    order = []
    hooks = server.state.hooks
    observe, end = hooks.observe_async, hooks.request_ended

    async def observed(name, **arguments):
        await asyncio.sleep(0.02)
        order.append(name)
        await observe(name, **arguments)

    async def at_the_end(request, outcome):
        order.append("end")
        await end(request, outcome)

    hooks.observe_async, hooks.request_ended = observed, at_the_end
    await server.client.post(COMPLETIONS, json={"prompt": "hi"})
    await eventually(lambda: "end" in order)
    assert order == ["plugserve_request_finished", "end"]


async def test_identity_of_a_plugin_is_the_requests(server, eventually):
    server.state.hooks.refusal = Identity("ada", tenant="acme")
    await server.client.post(COMPLETIONS, json={"prompt": "hi", "user": "laptop"})
    await eventually(lambda: server.state.hooks.ended)
    assert server.state.hooks.ended[0][0].identity == Identity("ada", tenant="acme")
    assert server.engine.calls[0].user == "ada/laptop"


@pytest.mark.parametrize(
    ("path", "body"), [one for one in ANSWERED if one[0] != "/tokenize"] + [("/invocations", CHAT_BODY)]
)
async def test_every_route_asks_the_rules_for_sampling(server, path, body):
    assert (await server.client.post(path, json=body)).status_code == 200
    (view, params, num_choices, num_prompts) = server.state.hooks.asked[0]
    assert view.path == path
    assert (num_choices, num_prompts) == (1, 1)
    assert params.max_tokens >= 1


@pytest.mark.parametrize("stream", [False, True])
async def test_changed_sampling_parameters_reach_the_engine(server, stream):
    async def capped(request, params, num_choices, num_prompts):
        return type(params)(max_tokens=3, seed=5, logit_bias={7: -100.0})

    server.state.hooks.sampling_params = capped
    await server.client.post(CHAT, json=CHAT_BODY | {"max_completion_tokens": 50, "n": 2, "stream": stream})
    sent = [request.params for request in server.engine.calls]
    assert [params.max_tokens for params in sent] == [3, 3]
    assert [params.logit_bias for params in sent] == [{7: -100.0}] * 2
    assert sent[0].seed != sent[1].seed


async def test_guard_of_the_kit_has_the_calls_that_the_server_makes():
    for name in ("authorize", "request_received", "sampling_params", "observe_async", "request_ended"):
        assert callable(getattr(PluginGuard, name))
