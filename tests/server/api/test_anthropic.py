"""POST /v1/messages and count_tokens, as Anthropic's own client sees them."""

import json

import anthropic
import pytest

from plugserve.core.contracts.requests import Refusal
from plugserve.plugins.reasoning_parsers.think_tags import ThinkTags
from plugserve.plugins.tool_parsers.hermes import hermes
from tests.server.api.test_structured import SCHEMA, accepts
from tests.server.fakes import NoHooks

ASK = {"model": "model", "max_tokens": 20, "messages": [{"role": "user", "content": "hello"}]}

TOOLS = [
    {
        "name": "get_weather",
        "description": "Weather of a city",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
    {"type": "custom", "name": "clock", "input_schema": {"type": "object"}},
]
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
        ({"tools": [{"name": "f", "input_schema": {}}]}, "--enable-auto-tool-choice"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"tools": {}}, "tools: must be a list"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "always"}}, "tool_choice.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "no"}}, "no tool is named 'no'"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages.0.content.0.tool_use_id"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]}, "messages.0.content.0.input"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "thinking.budget_tokens: must be at least 1024"),
        ({"max_tokens": 100, "thinking": {"type": "enabled", "budget_tokens": 1024}}, "below max_tokens"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        ({"output_config": {"task_budget": {"total": 5}}}, "output_config.task_budget"),
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


# ---------------------------------------------------------------- tools and thinking

CALLS = (
    'Let me look. <tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>'
    '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
)
THINKING_CALLS = f"<think>hm, hm</think>\n\n{CALLS}"
MODEL = {"tool_parser": hermes, "reasoning_parser": ThinkTags}


def blocks(message):
    """A message's content without what is made up anew each time."""
    return [
        {name: value for name, value in block.model_dump(exclude_none=True).items() if name not in ("id", "caller")}
        for block in message.content
    ]


@pytest.mark.parametrize("tokens_per_step", [1, 5, 1000])
async def test_thinking_text_and_calls_are_blocks_plain_and_streamed(serve, client_of, tokens_per_step):
    ask = {**ASK, "max_tokens": 400, "tools": TOOLS}
    async with serve(THINKING_CALLS, model=MODEL, max_model_len=1024, tokens_per_step=tokens_per_step) as server:
        async with client_of(server) as client:
            plain = await client.messages.create(**ask)
            async with client.messages.stream(**ask) as stream:
                events = [event async for event in stream]
                streamed = await stream.get_final_message()
        assert server.template.tools[0][1]["function"]["name"] == "clock"
    assert blocks(plain) == blocks(streamed)
    assert blocks(plain) == [
        {"type": "thinking", "thinking": "hm, hm", "signature": ""},
        {"type": "text", "text": "Let me look."},
        {"type": "tool_use", "name": "get_weather", "input": {"city": "Rome"}},
        {"type": "tool_use", "name": "clock", "input": {}},
    ]
    assert plain.stop_reason == streamed.stop_reason == "tool_use"
    assert all(block.id.startswith("call_") for block in plain.content[2:])
    raw = [event for event in events if event.type.startswith("content_block_st")]
    assert [(event.type, event.index) for event in raw] == [
        (kind, index) for index in range(4) for kind in ("content_block_start", "content_block_stop")
    ]
    parts = [
        event.delta.partial_json
        for event in events
        if event.type == "content_block_delta" and event.delta.type == "input_json_delta" and event.index == 2
    ]
    assert json.loads("".join(parts)) == {"city": "Rome"}
    assert tokens_per_step > 1 or len(parts) > 5


@pytest.mark.parametrize(
    ("choice", "good", "bad"),
    [
        ({"type": "any"}, ['[{"name": "clock", "arguments": {}}]'], ["hello", "[]"]),
        ({"type": "tool", "name": "get_weather"}, ['{"city": "Oslo"}'], ["{}", "hello"]),
        (
            {"type": "any", "disable_parallel_tool_use": True},
            ['[{"name": "clock", "arguments": {}}]'],
            ['[{"name": "clock", "arguments": {}}, {"name": "clock", "arguments": {}}]'],
        ),
    ],
)
async def test_forced_calls_are_bound(server, tokenizer, choice, good, bad):
    response = await server.client.post("/v1/messages", json={**ASK, "tools": TOOLS, "tool_choice": choice})
    assert response.status_code == 200, response.text
    grammar = server.engine.calls[0].params.grammar
    assert [accepts(tokenizer, grammar, text) for text in (*good, *bad)] == [True] * len(good) + [False] * len(bad)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_named_tools_arguments_are_its_input(serve, client_of, stream):
    choice = {"type": "tool", "name": "get_weather"}
    async with serve('{"city": "Oslo"}') as server, client_of(server) as client:
        ask = {**ASK, "tools": TOOLS, "tool_choice": choice}
        if stream:
            async with client.messages.stream(**ask) as stream:
                message = await stream.get_final_message()
        else:
            message = await client.messages.create(**ask)
    assert blocks(message) == [{"type": "tool_use", "name": "get_weather", "input": {"city": "Oslo"}}]
    assert message.stop_reason == "tool_use"


async def test_none_hides_the_tools(server):
    body = {**ASK, "tools": TOOLS, "tool_choice": {"type": "none"}}
    response = await server.client.post("/v1/messages", json=body)
    assert response.json()["content"] == [{"type": "text", "text": "hello world!", "citations": None}]
    assert server.template.tools == [None]


async def test_a_call_that_the_limit_cuts_off_is_left_out(serve, client_of):
    async with serve(CALLS, model=MODEL, max_model_len=1024) as server, client_of(server) as client:
        message = await client.messages.create(**{**ASK, "max_tokens": 60}, tools=TOOLS)
    assert message.stop_reason == "max_tokens"
    assert blocks(message) == [{"type": "text", "text": "Let me look."}]


async def test_history_of_calls_and_thinking_reaches_the_template(server):
    call = {"type": "tool_use", "id": "call_1", "name": "clock", "input": {"zone": "utc"}}
    result = {"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "text", "text": "12:00"}]}
    failed = {"type": "tool_result", "tool_use_id": "call_2", "content": "no clock", "is_error": True}
    thought = {"type": "thinking", "thinking": "hm", "signature": ""}
    hidden = {"type": "redacted_thinking", "data": "xyz"}
    messages = [
        {"role": "user", "content": "time?"},
        {"role": "assistant", "content": [thought, hidden, {"type": "text", "text": "let me see"}, call]},
        {"role": "user", "content": [result, failed, {"type": "text", "text": "well?"}]},
    ]
    response = await server.client.post("/v1/messages", json={**ASK, "messages": messages, "max_tokens": 5})
    assert response.status_code == 200, response.text
    rendered = server.template.renders[0][0]
    assert [message["role"] for message in rendered] == ["user", "assistant", "tool", "tool", "user"]
    assert rendered[1]["reasoning_content"] == "hm"
    assert rendered[1]["content"] == "let me see"
    assert rendered[1]["tool_calls"][0]["function"] == {"name": "clock", "arguments": {"zone": "utc"}}
    assert [message["content"] for message in rendered[2:]] == ["12:00", "Error: no clock", "well?"]
    assert rendered[2]["tool_call_id"] == "call_1"


@pytest.mark.parametrize(
    ("thinking", "variables"),
    [
        ({"type": "enabled", "budget_tokens": 1024}, {"enable_thinking": True, "thinking": True}),
        ({"type": "disabled"}, {"enable_thinking": False, "thinking": False}),
        ({"type": "adaptive"}, {}),
    ],
)
async def test_thinking_reaches_the_template(serve, thinking, variables):
    async with serve("<think>hm</think>yes", model=MODEL, max_model_len=4096) as server:
        body = {**ASK, "max_tokens": 2000, "thinking": thinking}
        response = await server.client.post("/v1/messages", json=body)
        assert response.json()["content"] == [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "yes", "citations": None},
        ]
        assert server.template.renders[0][3] == variables


async def test_a_model_that_does_not_think_is_not_asked_to(serve):
    async with serve(max_model_len=4096) as server:
        body = {**ASK, "max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1024}}
        response = await server.client.post("/v1/messages", json=body)
        assert response.status_code == 400
        assert "--reasoning-parser" in response.json()["error"]["message"]
        assert (await server.client.post("/v1/messages", json={**ASK, "thinking": {"type": "adaptive"}})).is_success


async def test_output_config_binds_the_answer(server, tokenizer):
    config = {"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "low"}
    assert (await server.client.post("/v1/messages", json={**ASK, "output_config": config})).is_success
    assert accepts(tokenizer, server.engine.calls[0].params.grammar, '{"a": 5}')
    assert server.template.renders[0][3]["reasoning_effort"] == "low"


async def test_tools_count_as_tokens_of_the_prompt(server, client_of):
    async with client_of(server) as client:
        await client.messages.count_tokens(model="model", messages=ASK["messages"], tools=TOOLS)
    assert server.template.tools[0][0]["function"]["name"] == "get_weather"


async def test_template_variables_of_a_wrong_type_are_refused_by_name(server):
    body = {"max_tokens": 4, "messages": [{"role": "user", "content": "hello"}], "chat_template_kwargs": [1]}
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        response = await server.client.post(path, json=body)
        assert response.status_code == 400, path
        assert "chat_template_kwargs" in response.json()["error"]["message"]
