"""POST /v1/responses and what is stored, as OpenAI's own client sees them."""

import json

import openai
import pytest

from plugserve.core.wire.messages import ResponseCall
from plugserve.plugins.reasoning_parsers.think_tags import ThinkTags
from plugserve.plugins.tool_parsers.hermes import hermes
from plugserve.server.api.responses.response_store import BoundedStore, ControlResponseStore
from tests.server.api.test_structured import SCHEMA, accepts

CLOCK = {"type": "function", "name": "clock", "parameters": {"type": "object", "properties": {}}}
SEQUENCE = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    *["response.output_text.delta"] * 3,
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


@pytest.fixture
async def client(server):
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


async def test_openais_client_reads_a_response(server, client):
    response = await client.responses.create(
        model="model", input="hello", instructions="be brief", max_output_tokens=20, temperature=0.5, top_p=0.9
    )
    assert response.output_text == "hello world!"
    assert (response.object, response.status, response.error) == ("response", "completed", None)
    assert (response.model, response.instructions, response.max_output_tokens) == ("fake/model", "be brief", 20)
    call = server.engine.calls[0]
    assert (response.usage.input_tokens, response.usage.output_tokens) == (len(call.prompt), 4)
    assert response.usage.total_tokens == len(call.prompt) + 4
    assert (call.params.max_tokens, call.params.temperature, call.params.top_p) == (20, 0.5, 0.9)
    assert server.template.renders[0][0] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
    ]


async def test_response_has_every_field_that_the_open_standard_requires(server):
    response = (await server.client.post("/v1/responses", json={"input": "hello", "presence_penalty": 0.5})).json()
    assert {"max_tool_calls", "prompt_cache_key", "safety_identifier"} <= response.keys()
    assert (response["temperature"], response["top_p"]) == (1.0, 1.0)
    assert (response["presence_penalty"], response["frequency_penalty"], response["top_logprobs"]) == (0.5, 0.0, 0)
    assert response["service_tier"] == "default"
    events = [event async for event in stream_of(server, {"input": "hello"})]
    assert events[0]["response"]["completed_at"] is None


async def test_compaction_is_said_not_to_exist(server):
    response = await server.client.post("/v1/responses/compact", json={"model": "model", "input": "hello"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "unsupported_endpoint"


async def stream_of(server, body):
    async with server.client.stream("POST", "/v1/responses", json={**body, "stream": True}) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                yield json.loads(line[6:])


async def test_items_become_messages(server, client):
    await client.responses.create(
        model="model",
        input=[
            {"role": "developer", "content": "be kind"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "yes?"}]},
            {"role": "user", "content": "go on"},
        ],
    )
    roles = [(message["role"], message["content"]) for message in server.template.renders[0][0]]
    assert roles == [("developer", "be kind"), ("user", "hello"), ("assistant", "yes?"), ("user", "go on")]


async def test_typed_events_come_in_order_and_are_numbered(client):
    events = [event async for event in await client.responses.create(model="model", input="hello", stream=True)]
    assert [event.type for event in events] == SEQUENCE
    assert [event.sequence_number for event in events] == list(range(len(SEQUENCE)))
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1].response
    assert deltas == last.output_text == "hello world!"
    assert last.usage.output_tokens == 4
    assert events[0].response.id == last.id
    assert events[2].item.id == last.output[0].id == events[4].item_id


async def test_clients_stream_helper_gathers_the_response(client):
    async with client.responses.stream(model="model", input="hello") as stream:
        final = await stream.get_final_response()
    assert final.output_text == "hello world!"


@pytest.mark.parametrize("stream", [False, True])
async def test_limit_makes_a_response_incomplete(client, stream):
    response = await client.responses.create(model="model", input="hello", max_output_tokens=2, stream=stream)
    if stream:
        events = [event async for event in response]
        assert events[-1].type == "response.incomplete"
        response = events[-1].response
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.output_text == "hello world"


@pytest.mark.parametrize("stream", [False, True])
async def test_conversation_goes_on_from_a_stored_response(server, client, stream):
    first = await client.responses.create(model="model", input="one", instructions="only now", stream=stream)
    if stream:
        first = [event async for event in first][-1].response
    second = await client.responses.create(model="model", input="two", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    await client.responses.delete(first.id)
    await client.responses.create(model="model", input="three", previous_response_id=second.id)
    said = [message["content"] for message in server.template.renders[2][0]]
    assert said == ["one", "hello world!", "two", "hello world!", "three"]


async def test_stored_response_can_be_read_and_deleted(client):
    response = await client.responses.create(model="model", input="hello", metadata={"a": "b"})
    again = await client.responses.retrieve(response.id)
    assert again == response
    assert again.metadata == {"a": "b"}
    await client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.delete(response.id)


async def test_what_shall_not_be_stored_is_not(client):
    response = await client.responses.create(model="model", input="hello", store=False)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response.id)
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        await client.responses.create(model="model", input="hello", previous_response_id=response.id)


async def test_ids_are_not_the_clients_to_choose(client):
    ids = set()
    for _ in range(2):
        response = await client.responses.create(model="model", input="x", extra_headers={"X-Request-Id": "mine"})
        ids.add(response.id)
    assert len(ids) == 2
    assert not any("mine" in id for id in ids)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [5]}, "input"),
        ({"input": [{"role": "robot", "content": "a"}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input"),
        ({"input": [{"type": "function_call_output", "output": "b"}]}, "input"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "f"}]}, "input"),
        ({"input": [{"type": "reasoning", "summary": 5}]}, "input"),
        ({"tools": [CLOCK]}, "tool_choice"),  # auto needs a flag
        ({"tools": "x"}, "tools"),
        ({"tools": [CLOCK, CLOCK], "tool_choice": "required"}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function", "name": "no"}}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": {"type": "allowed_tools", "mode": "auto"}}, "tool_choice"),
        ({"reasoning": {"effort": "enormous"}}, "reasoning"),
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "foo"}}}}, "text"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 1000}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"text": {"format": {"type": "xml"}}}, "text"),
        ({"truncation": "auto"}, "truncation"),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
    ],
)
async def test_what_is_wrong_is_named(server, fields, param):
    response = await server.client.post("/v1/responses", json={"input": "hello", **fields})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


async def test_failure_in_mid_stream_is_a_failed_response(serve):
    body = {"input": "hello", "stream": True}
    async with serve(fails_after=1) as server, server.client.stream("POST", "/v1/responses", json=body) as response:
        lines = [line async for line in response.aiter_lines() if line]
    assert lines[-2] == "event: response.failed"
    assert '"status":"failed"' in lines[-1]


# ---------------------------------------------------------------- tools, thinking, formats

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOLS = [WEATHER, CLOCK]
ANSWER = (
    "<think>hm, hm</think>\n\nLet me look. "
    '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>'
    '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
)
MODEL = {"tool_parser": hermes, "reasoning_parser": ThinkTags}


def client_of(server):
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)


def told(response):
    """Output items without what is made up anew each time."""
    items = [item.model_dump() for item in response.output]
    return [
        (item["type"], item["status"], item.get("content") and item["content"][0]["text"], item.get("arguments"))
        for item in items
    ]


@pytest.mark.parametrize("tokens_per_step", [1, 5, 1000])
async def test_thinking_words_and_calls_are_items_plain_and_streamed(serve, tokens_per_step):
    ask = {"model": "model", "input": "weather?", "tools": TOOLS, "max_output_tokens": 400}
    async with serve(ANSWER, model=MODEL, max_model_len=1024, tokens_per_step=tokens_per_step) as server:
        async with client_of(server) as client:
            plain = await client.responses.create(**ask)
            events = [event async for event in await client.responses.create(**ask, stream=True)]
            async with client.responses.stream(**ask) as stream:
                gathered = await stream.get_final_response()
        assert server.template.tools[0][0]["function"]["name"] == "get_weather"
    streamed = events[-1].response
    assert told(plain) == told(streamed) == told(gathered)
    assert told(plain) == [
        ("reasoning", "completed", "hm, hm", None),
        ("message", "completed", "Let me look.", None),
        ("function_call", "completed", None, '{"city": "Rome"}'),
        ("function_call", "completed", None, "{}"),
    ]
    assert [item.name for item in plain.output[2:]] == ["get_weather", "clock"]
    assert (
        plain.usage.output_tokens_details.reasoning_tokens == streamed.usage.output_tokens_details.reasoning_tokens > 5
    )
    assert [tool.name for tool in plain.tools] == ["get_weather", "clock"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    check_items(events)


def check_items(events):
    """Every item is added, grows by deltas, and is done, before the next one is added."""
    done = []
    for event in events:
        if event.type == "response.output_item.added":
            assert event.output_index == len(done)
            item, text = event.item, ""
        elif event.type.endswith(".delta"):
            assert (event.item_id, event.output_index) == (item.id, len(done))
            text += event.delta
        elif event.type == "response.output_item.done":
            assert event.item.id == item.id
            assert text == (event.item.arguments if item.type == "function_call" else event.item.content[0].text)
            done.append(event.item)
        elif event.type == "response.function_call_arguments.done":
            assert (event.arguments, event.name) == (text, item.name)
        elif event.type in ("response.output_text.done", "response.reasoning_text.done"):
            assert event.text == text
    assert done == events[-1].response.output


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_is_answered_from_a_stored_response(serve, stream):
    async with serve(ANSWER, model=MODEL, max_model_len=1024) as server, client_of(server) as client:
        first = await client.responses.create(model="model", input="weather?", tools=TOOLS, stream=stream)
        if stream:
            first = [event async for event in first][-1].response
        calls = [item for item in first.output if item.type == "function_call"]
        outputs = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"} for call in calls]
        await client.responses.create(model="model", input=outputs, previous_response_id=first.id, tools=TOOLS)
        rendered = server.template.renders[1][0]
    assert [message["role"] for message in rendered] == ["user", "assistant", "tool", "tool"]
    assert rendered[1]["content"] == "Let me look."
    assert rendered[1]["reasoning_content"] == "hm, hm"
    assert [call["function"]["arguments"] for call in rendered[1]["tool_calls"]] == [{"city": "Rome"}, {}]
    assert [message["tool_call_id"] for message in rendered[2:]] == [call.call_id for call in calls]


async def test_items_of_one_turn_become_one_message(server, client):
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    words = {"role": "assistant", "content": [{"type": "output_text", "text": "let me see"}]}
    call = {"type": "function_call", "call_id": "call_1", "name": "clock", "arguments": '{"zone": "utc"}'}
    output = {"type": "function_call_output", "call_id": "call_1", "output": [{"type": "input_text", "text": "12:00"}]}
    history = [{"role": "user", "content": "time?"}, thought, words, call, output, thought, {**words, "content": "12"}]
    await client.responses.create(model="model", input=[*history, {"role": "user", "content": "thanks"}])
    rendered = server.template.renders[0][0]
    assert [message["role"] for message in rendered] == ["user", "assistant", "tool", "assistant", "user"]
    assert (rendered[1]["reasoning_content"], rendered[1]["content"]) == ("hm", "let me see")
    assert rendered[1]["tool_calls"][0]["function"] == {"name": "clock", "arguments": {"zone": "utc"}}
    assert (rendered[2]["tool_call_id"], rendered[2]["content"]) == ("call_1", "12:00")
    assert (rendered[3]["reasoning_content"], rendered[3]["content"]) == ("hm", "12")


ONE = '[{"name": "clock", "arguments": {}}]'
OTHER = '[{"name": "get_weather", "arguments": {"city": "Oslo"}}]'
ALLOWED = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "clock"}]}


@pytest.mark.parametrize(
    ("fields", "good", "bad"),
    [
        ({"tool_choice": "required"}, [ONE, OTHER], ["hello", "[]"]),
        ({"tool_choice": {"type": "function", "name": "get_weather"}}, ['{"city": "Oslo"}'], ["{}", "hello"]),
        ({"tool_choice": ALLOWED}, [ONE], [OTHER]),
        ({"tool_choice": "required", "parallel_tool_calls": False}, [ONE], [f"{ONE[:-1]}, {OTHER[1:]}"]),
    ],
)
async def test_forced_calls_are_bound(server, tokenizer, fields, good, bad):
    response = await server.client.post("/v1/responses", json={"input": "x", "tools": TOOLS, **fields})
    assert response.status_code == 200, response.text
    grammar = server.engine.calls[0].params.grammar
    assert [accepts(tokenizer, grammar, text) for text in (*good, *bad)] == [True] * len(good) + [False] * len(bad)


async def test_a_named_function_is_called(serve):
    choice = {"type": "function", "name": "get_weather"}
    async with serve('{"city": "Oslo"}') as server, client_of(server) as client:
        response = await client.responses.create(model="model", input="x", tools=TOOLS, tool_choice=choice)
        (item,) = response.output
    assert (item.type, item.name, json.loads(item.arguments)) == ("function_call", "get_weather", {"city": "Oslo"})


@pytest.mark.parametrize(
    ("format", "good", "bad"),
    [
        ({"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}, '{"a": 5}', "{}"),
        ({"type": "json_object"}, '{"b": 5}', "[]"),
    ],
)
async def test_formats_bind_the_answer(server, client, tokenizer, format, good, bad):
    response = await client.responses.create(model="model", input="x", text={"format": format, "verbosity": "low"})
    grammar = server.engine.calls[0].params.grammar
    assert accepts(tokenizer, grammar, good)
    assert not accepts(tokenizer, grammar, bad)
    assert response.text.format.type == format["type"]


async def test_effort_reaches_the_template(server, client):
    response = await client.responses.create(model="model", input="x", reasoning={"effort": "low"})
    assert server.template.renders[0][3]["reasoning_effort"] == "low"
    assert response.reasoning.effort == "low"


@pytest.mark.parametrize("stream", [False, True])
async def test_thinking_that_the_limit_cuts_off_is_incomplete(serve, stream):
    async with serve("<think>hm, hm", model=MODEL) as server, client_of(server) as client:
        response = await client.responses.create(model="model", input="x", max_output_tokens=11, stream=stream)
        if stream:
            response = [event async for event in response][-1].response
    assert response.status == "incomplete"
    assert told(response) == [("reasoning", "incomplete", "hm,", None)]


def test_store_forgets_what_was_not_used_for_longest():
    store = BoundedStore(max_count=2)
    store.keep("a", b"1")
    store.keep("b", b"2")
    assert store.find("a") == b"1"
    store.keep("c", b"3")
    assert [store.find(id) for id in "abc"] == [b"1", None, b"3"]
    store.keep("a", b"44")
    assert (len(store), store.num_bytes) == (2, 3)


def test_store_holds_no_more_bytes_than_it_may():
    store = BoundedStore(max_bytes=10)
    for id in "abcd":
        store.keep(id, b"1234")
    assert (len(store), store.num_bytes) == (2, 8)
    store.keep("e", b"x" * 11)
    assert (len(store), store.num_bytes) == (0, 0)


async def test_workers_share_the_supervisors_store():
    held = BoundedStore()

    def worker():
        async def send(call):
            assert isinstance(call, ResponseCall)
            store.note(held.answer(call))

        store = ControlResponseStore(send)
        return store

    one, other = worker(), worker()
    await one.keep("a", b"record")
    assert await other.find("a") == b"record"
    assert await other.forget("a")
    assert not await one.forget("a")
    assert await one.find("a") is None
