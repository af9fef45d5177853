"""tools and tool_choice: what binds the answer, and how calls are told."""

import json

import pytest

from plugserve.plugins.tool_parsers.hermes import hermes
from tests.server.api.test_structured import accepts

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/city"}},
            "required": ["city"],
            "$defs": {"city": {"enum": ["Paris", "Rome"]}},
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TOOLS = [WEATHER, CLOCK]
OTHER = {"type": "function", "function": {"name": "other"}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
ALLOWED = {
    "type": "allowed_tools",
    "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "clock"}}]},
}
CALLS = '[{"name": "get_weather", "arguments": {"city": "Rome"}}, {"name": "clock", "arguments": {}}]'


def joined(events):
    """The calls of a stream as (name, arguments), from deltas that name a call once."""
    calls = {}
    for event in events:
        for call in event["choices"][0]["delta"].get("tool_calls", []):
            if call["index"] not in calls:
                assert call["id"].startswith("call_")
                assert call["type"] == "function"
                calls[call["index"]] = [call["function"]["name"], call["function"]["arguments"]]
            else:
                assert set(call) == {"index", "function"}
                assert set(call["function"]) == {"arguments"}
                calls[call["index"]][1] += call["function"]["arguments"]
    return [(name, json.loads(arguments)) for name, arguments in calls.values()]


@pytest.mark.parametrize(
    ("choice", "text", "expected"),
    [
        (NAMED, '{"city": "Paris"}', [("get_weather", {"city": "Paris"})]),
        ("required", CALLS, [("get_weather", {"city": "Rome"}), ("clock", {})]),
    ],
)
@pytest.mark.parametrize("tokens_per_step", [1, 3, 100])
async def test_forced_calls_are_told_whole_and_streamed(serve, choice, text, expected, tokens_per_step):
    async with serve(text, tokens_per_step=tokens_per_step, max_model_len=512) as server:
        body = (await server.chat(tools=TOOLS, tool_choice=choice)).json()["choices"][0]
        calls = body["message"]["tool_calls"]
        assert [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls] == expected
        assert len({call["id"] for call in calls}) == len(calls)
        assert body["message"]["content"] is None
        assert body["finish_reason"] == "tool_calls"
        events = await server.chat_events(tools=TOOLS, tool_choice=choice)
        assert joined(events) == expected
        assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
        assert not any(event["choices"][0]["delta"].get("content") for event in events)


@pytest.mark.parametrize(
    ("fields", "good", "bad"),
    [
        ({"tool_choice": NAMED}, ['{"city": "Paris"}'], ["{}", '{"city": "Oslo"}', "x"]),
        (
            {"tool_choice": NAMED},
            ['{"city": "Paris"}'],
            ['{"city":"Paris"}', '{"city": "Paris", "more": 1}', '{\n"city": "Paris"}'],
        ),
        ({"tool_choice": "required"}, [CALLS], ["[]", "{}", "x", '[{"name": "clock", "arguments": {"x": 1}}]']),
        ({"tool_choice": ALLOWED}, ['[{"name": "clock", "arguments": {}}]'], ["[]", CALLS]),
        ({"tool_choice": "required", "parallel_tool_calls": False}, [], [CALLS]),
    ],
)
async def test_grammar_lets_only_calls_of_the_tools_through(server, tokenizer, fields, good, bad):
    assert (await server.chat(tools=TOOLS, **fields)).status_code == 200
    grammar = server.engine.calls[0].params.grammar
    assert [accepts(tokenizer, grammar, text) for text in (*good, *bad)] == [True] * len(good) + [False] * len(bad)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"tools": TOOLS}, "--enable-auto-tool-choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "no"}}}, "no tool is named 'no'"),
        ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice: must be none, auto, required"),
        ({"tool_choice": "required"}, "needs tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "allowed_tools.mode"),
        (
            {
                "tools": TOOLS,
                "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [OTHER]}},
            },
            "no tool is named 'other'",
        ),
        ({"tools": "x", "tool_choice": "required"}, "tools: must be a list"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [CLOCK, CLOCK]}, "used twice"),
        (
            {
                "tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": 5}}}],
                "tool_choice": "required",
            },
            "tools: can't be used",
        ),
    ],
)
async def test_bad_tools_are_named(server, fields, told):
    response = await server.chat(**fields)
    assert response.status_code == 400
    assert told in response.json()["error"]["message"]
    assert not server.engine.calls


async def test_history_reaches_the_template_with_arguments_as_objects(server):
    call = {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "utc"}'}}
    messages = [
        {"role": "user", "content": "time?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "12:00"},
    ]
    response = await server.client.post("/v1/chat/completions", json={"messages": messages})
    assert response.status_code == 200
    rendered = server.template.renders[0][0]
    assert rendered[1]["tool_calls"][0]["function"]["arguments"] == {"zone": "utc"}
    assert rendered[1]["content"] == ""
    assert rendered[2]["tool_call_id"] == "call_1"


@pytest.mark.parametrize("tokens_per_step", [1, 7])
async def test_calls_that_the_model_writes_by_itself_are_told(serve, tokens_per_step):
    text = 'Sure. <tool_call>{"name": "clock", "arguments": {}}</tool_call>'
    model = {"tool_parser": hermes}
    async with serve(text, tokens_per_step=tokens_per_step, model=model, max_model_len=512) as server:
        choice = (await server.chat(tools=TOOLS)).json()["choices"][0]
        assert choice["message"]["content"] == "Sure."
        assert choice["message"]["tool_calls"][0]["function"] == {"name": "clock", "arguments": "{}"}
        assert choice["finish_reason"] == "tool_calls"
        events = await server.chat_events(tools=TOOLS, tool_choice="auto")
        assert joined(events) == [("clock", {})]
        assert "".join(event["choices"][0]["delta"].get("content") or "" for event in events) == "Sure."
        assert server.engine.calls[0].params.grammar == ""


def strict(parameters):
    """A tool with these parameters, and the body's fields that force a call of it."""
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    return {"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "f"}}}


@pytest.mark.parametrize(
    ("parameters", "good", "bad"),
    [
        (None, ["{}"], ['{"x": 1}']),
        ({}, ["{}"], ['{"x": 1}']),
        ({"type": "object", "properties": {}}, ["{}"], ['{"x": 1}']),
        ({"type": "object", "additionalProperties": True}, ["{}", '{"x": 1}'], ["[]"]),
        ({"properties": {"a": {"type": "object"}}}, ["{}", '{"a": {"x": 1}}'], ['{"b": 1}']),  # a is a free mapping
        (
            {"properties": {"a": {"type": "array", "items": {"properties": {"b": {"type": "null"}}}}}},
            ['{"a": [{"b": null}, {}]}'],
            ['{"a": [{"c": 1}]}'],
        ),
        ({"properties": {"a": {}}, "required": ["b"]}, ['{"b": 1}'], ["{}"]),
        ({"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"properties": {}}}}, ['{"a": {}}'], ['{"x": 1}']),
        (
            {"allOf": [{"properties": {"a": {"type": "null"}}}, {"properties": {"b": {"type": "null"}}}]},
            ['{"a": null, "b": null}'],
            ['{"a": 1}'],
        ),
        (
            {"properties": {"a": {"anyOf": [{"properties": {"b": {"type": "null"}}}, {"type": "null"}]}}},
            ['{"a": null}', '{"a": {"b": null}}'],
            ['{"a": {"c": 1}}'],
        ),
    ],
)
async def test_arguments_hold_declared_properties_only(server, tokenizer, parameters, good, bad):
    assert (await server.chat(**strict(parameters))).status_code == 200
    grammar = server.engine.calls[0].params.grammar
    assert [accepts(tokenizer, grammar, text) for text in (*good, *bad)] == [True] * len(good) + [False] * len(bad)


async def test_integers_of_arguments_stay_exact(server, tokenizer):
    fields = strict({"properties": {"n": {"type": "integer"}}})
    assert (await server.chat(**fields)).status_code == 200
    grammar = server.engine.calls[0].params.grammar
    assert accepts(tokenizer, grammar, '{"n": -9007199254740991}')
    assert not accepts(tokenizer, grammar, '{"n": 10000000000000000}')


async def test_strict_tools_refuse_what_cannot_be_bound(server):
    fields = strict({"properties": {"a": {"not": {"type": "null"}}}})
    assert (await server.chat(**fields)).status_code == 200
    fields["tools"][0]["function"]["strict"] = True
    response = await server.chat(**fields)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("tools: can't be used to bind the answer")


@pytest.mark.parametrize("tokens_per_step", [1, 2, 100])
async def test_forced_calls_are_told_while_they_grow_and_as_far_as_they_came(serve, tokens_per_step):
    text = '[{"name": "get_weather", "arguments": {"city": "Rome"}}'
    async with serve(text, eos=None, tokens_per_step=tokens_per_step, max_model_len=512) as server:
        fields = {"tools": TOOLS, "tool_choice": "required", "max_tokens": 48}
        choice = (await server.chat(**fields)).json()["choices"][0]
        assert choice["finish_reason"] == "length"
        (call,) = choice["message"]["tool_calls"]
        assert call["function"]["arguments"].startswith('{"city": "R')
        events = await server.chat_events(**fields)
        parts = [
            part["function"]["arguments"] for e in events for part in e["choices"][0]["delta"].get("tool_calls", [])
        ]
        assert "".join(parts) == call["function"]["arguments"]
        assert tokens_per_step > 1 or len(parts) > 3


async def test_only_the_first_call_is_told_without_parallel_calls(serve):
    text = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>' * 2
    async with serve(text, model={"tool_parser": hermes}, max_model_len=512) as server:
        for parallel, count in ((True, 2), (None, 2), (False, 1)):
            choice = (await server.chat(tools=TOOLS, parallel_tool_calls=parallel)).json()["choices"][0]
            assert len(choice["message"]["tool_calls"]) == count
            events = await server.chat_events(tools=TOOLS, parallel_tool_calls=parallel)
            assert len(joined(events)) == count


async def test_none_hides_the_tools_and_binds_nothing(server):
    choice = (await server.chat(tools=TOOLS, tool_choice="none")).json()["choices"][0]
    assert choice["message"]["content"] == "hello world!"
    assert server.template.tools == [None]
    assert server.engine.calls[0].params.grammar == ""


LOOP = '[{"name": "clock", "arguments": {}}, {"name": "get_weather", "arguments": {"city": "Rome"}}'


@pytest.mark.parametrize("tokens_per_step", [1, 3, 100])
async def test_an_answer_that_repeats_a_call_is_over(serve, tokens_per_step, eventually):
    again = ', {"name": "get_weather", "arguments": {"city": "Rome"}}'
    other = ', {"name": "get_weather", "arguments": {"city": "Rovigo"}}'
    async with serve(LOOP + other + again * 9, tokens_per_step=tokens_per_step, max_model_len=1024) as server:
        fields = {"tools": TOOLS, "tool_choice": "required"}
        expected = [("clock", {}), ("get_weather", {"city": "Rome"}), ("get_weather", {"city": "Rovigo"})]
        choice = (await server.chat(**fields)).json()["choices"][0]
        calls = choice["message"]["tool_calls"]
        assert [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls] == expected
        assert choice["finish_reason"] == "tool_calls"
        events = await server.chat_events(**fields)
        assert joined(events) == expected
        assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
        if tokens_per_step < 100:
            await eventually(lambda: len(server.engine.aborted) == 2)


async def test_a_repetition_that_the_limit_cuts_off_is_told_as_far_as_it_came(serve):
    text = LOOP + ', {"name": "get_weather", "arguments": {"city": "R'
    async with serve(text, eos=None, tokens_per_step=5, max_model_len=1024) as server:
        tokens = len(server.engine.script(None))
        choice = (await server.chat(tools=TOOLS, tool_choice="required", max_tokens=tokens)).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert [call["function"]["arguments"] for call in choice["message"]["tool_calls"]][2:] == ['{"city": "R']


@pytest.mark.parametrize(
    ("reads_json", "choice", "is_told"),
    [
        (True, "auto", True),
        (True, "none", False),
        (False, "auto", False),
        (False, "required", True),
        (False, NAMED, True),
    ],
)
async def test_a_template_without_tools_gets_them_in_words(serve, reads_json, choice, is_told):
    model = {"tool_parser": hermes, "reads_json": reads_json}
    async with serve(CALLS, model=model, max_model_len=4096) as server:
        server.template.takes_tools = False
        assert (await server.chat(tools=TOOLS, tool_choice=choice)).status_code == 200
        rendered = server.template.renders[0][0]
        system = [message["content"] for message in rendered if message["role"] == "system"]
        assert [WEATHER["function"]["description"] in text for text in system] == [True] * is_told
        assert rendered[-1]["content"] == "hello"


async def test_calls_and_results_are_words_to_a_template_without_tools(serve):
    call = {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "utc"}'}}
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "time?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "12:00"},
    ]
    async with serve(model={"tool_parser": hermes, "reads_json": True}, max_model_len=4096) as server:
        server.template.takes_tools = False
        body = {"messages": messages, "tools": TOOLS}
        assert (await server.client.post("/v1/chat/completions", json=body)).status_code == 200
        rendered = server.template.renders[0][0]
    assert [message["role"] for message in rendered] == ["system", "user", "assistant", "user"]
    assert rendered[0]["content"].startswith("be kind\n\nYou can call functions.")
    assert json.loads(rendered[2]["content"]) == [{"name": "clock", "arguments": {"zone": "utc"}}]
    assert rendered[3]["content"].endswith("12:00")
