"""POST /v1/messages and count_tokens, as Anthropic's own client sees them."""

import anthropic
import pytest

from plugserve.core.contracts import Refusal
from tests.server.fakes import NoHooks

ASK = {"model": "model", "max_tokens": 20, "messages": [{"role": "user", "content": "hello"}]}

SAMPLING = {"temperature": 0.5, "top_p": 0.9, "top_k": 5}


@pytest.fixture
def client_of():
    def make(server):
        url = f"http://127.0.0.1:{server.port}"
        return anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0)

    return make


async def test_anthropics_client_reads_a_message(server, client_of):
    async with client_of(server) as client:
        message = await client.messages.create(**ASK, system="be brief", extra_body=SAMPLING)
    assert message.id.startswith("msg_")
    assert (message.type, message.role, message.model) == ("message", "assistant", "fake/model")
    assert [(block.type, block.text) for block in message.content] == [("text", "hello world!")]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    call = server.engine.calls[0]
    assert (message.usage.input_tokens, message.usage.output_tokens) == (len(call.prompt), 4)
    assert (call.params.temperature, call.params.top_p, call.params.top_k) == (0.5, 0.9, 5)
    assert server.template.renders[0][0] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
    ]


async def test_blocks_join_and_an_assistants_last_words_are_continued(server):
    blocks = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo", "cache_control": {"type": "ephemeral"}}]
    messages = [{"role": "user", "content": blocks}, {"role": "assistant", "content": "I say"}]
    response = await server.client.post("/v1/messages", json={**ASK, "messages": messages, "system": blocks[:1]})
    assert response.status_code == 200, response.text
    rendered, with_prompt, is_continued, _ = server.template.renders[0]
    assert [message["content"] for message in rendered] == ["hel", "hello", "I say"]
    assert (with_prompt, is_continued) == (False, True)


@pytest.mark.parametrize(
    ("fields", "reason", "sequence", "text"),
    [
        ({"max_tokens": 2}, "max_tokens", None, "hello world"),
        ({"stop_sequences": ["wor"]}, "stop_sequence", "wor", "hello "),
        ({}, "end_turn", None, "hello world!"),
    ],
)
async def test_stream_gives_the_plain_message(server, client_of, fields, reason, sequence, text):
    async with client_of(server) as client:
        plain = await client.messages.create(**{**ASK, **fields})
        async with client.messages.stream(**{**ASK, **fields}) as stream:
            events = [event.type async for event in stream]
            streamed = await stream.get_final_message()
    assert (streamed.stop_reason, streamed.stop_sequence, streamed.content[0].text) == (reason, sequence, text)
    assert streamed.content[0].text == plain.content[0].text
    assert streamed.stop_reason == plain.stop_reason
    assert streamed.usage.output_tokens == plain.usage.output_tokens
    assert streamed.usage.input_tokens == plain.usage.input_tokens
    raw = [kind for kind in events if kind not in ("text",)]
    assert raw[:2] == ["message_start", "content_block_start"]
    assert raw[-3:] == ["content_block_stop", "message_delta", "message_stop"]


async def test_events_are_named_after_their_type(server):
    async with server.client.stream("POST", "/v1/messages", json={**ASK, "stream": True}) as response:
        lines = [line async for line in response.aiter_lines() if line.startswith("event: ")]
    names = [line.removeprefix("event: ") for line in lines]
    deltas = names.count("content_block_delta")
    assert deltas == 3
    assert names == [
        "message_start", "content_block_start", "ping", *["content_block_delta"] * 3,
        "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip


async def test_tokens_are_counted_as_the_message_counts_them(server, client_of):
    async with client_of(server) as client:
        counted = await client.messages.count_tokens(model="model", messages=ASK["messages"], system="x")
        message = await client.messages.create(**ASK, system="x")
    assert counted.input_tokens == message.usage.input_tokens


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 1000}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"system": 5}, "system"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"temperature": 3}, "temperature"),
        ({"tools": [{"name": "f", "input_schema": {}}]}, "tools"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
    ],
)
async def test_errors_have_anthropics_shape_and_name_the_field(server, fields, name):
    response = await server.client.post("/v1/messages", json={**ASK, **fields})
    assert response.status_code == 400
    body = response.json()
    assert set(body) == {"type", "error"}
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert name in body["error"]["message"]


async def test_statuses_become_the_clients_exceptions(server, client_of):
    async with client_of(server) as client:
        with pytest.raises(anthropic.NotFoundError, match="nobody"):
            await client.messages.create(**{**ASK, "model": "nobody"})
        server.engine.state = "dead"
        with pytest.raises(anthropic.APIStatusError) as error:
            await client.messages.create(**ASK)
    assert error.value.status_code == 503
    assert error.value.body["error"]["type"] == "overloaded_error"


async def test_refusals_have_anthropics_shape(serve):
    hooks = NoHooks()
    hooks.refusal = Refusal(401, "who are you?")
    async with serve(state={"hooks": hooks}) as server:
        response = await server.client.post("/v1/messages", json=ASK)
    assert response.json() == {"type": "error", "error": {"type": "authentication_error", "message": "who are you?"}}


async def test_failure_in_mid_stream_is_an_error_event(serve):
    body = {**ASK, "stream": True}
    async with serve(fails_after=1) as server, server.client.stream("POST", "/v1/messages", json=body) as response:
        lines = [line async for line in response.aiter_lines() if line]
    assert lines[-2] == "event: error"
    assert '"api_error"' in lines[-1]


async def test_unknown_fields_are_named_in_a_header(server):
    response = await server.client.post("/v1/messages", json={**ASK, "colour": "red", "service_tier": "auto"})
    assert response.headers["x-plugserve-ignored-fields"] == "colour"


async def test_message_has_every_field_that_anthropics_document_requires(server):
    body = {"model": "model", "max_tokens": 20, "messages": [{"role": "user", "content": "hello"}]}
    message = (await server.client.post("/v1/messages", json=body)).json()
    assert {"container", "stop_details", "stop_sequence"} <= message.keys()
    assert {"cache_creation", "inference_geo", "output_tokens_details", "server_tool_use"} <= message["usage"].keys()
    assert message["usage"]["service_tier"] == "standard"
    assert message["content"][0]["citations"] is None
