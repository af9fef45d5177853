"""Thinking in chat: told apart, streamed, counted, left out on request, and before what binds an answer."""

import pytest

from plugserve.plugins.reasoning_parsers.think_tags import ThinkTags
from plugserve.plugins.tool_parsers.hermes import hermes
from tests.server.api.test_structured import SCHEMA, accepts, json_schema
from tests.server.api.test_tools import TOOLS, joined

THINKS = {"reasoning_parser": ThinkTags}
TEXT = "<think>\nwell, a < b\n</think>\n\nhello world!"


def delta_text(events, name):
    return "".join(event["choices"][0]["delta"].get(name) or "" for event in events)


@pytest.mark.parametrize("tokens_per_step", [1, 4, 100])
async def test_thinking_is_told_by_both_names(serve, tokens_per_step):
    async with serve(TEXT, tokens_per_step=tokens_per_step, model=THINKS) as server:
        body = (await server.chat()).json()
        message = body["choices"][0]["message"]
        assert (message["reasoning"], message["content"]) == ("well, a < b", "hello world!")
        assert message["reasoning_content"] == message["reasoning"]
        events = await server.chat_events(stream_options={"include_usage": True})
        assert delta_text(events[:-1], "content") == "hello world!"
        for name in ("reasoning", "reasoning_content"):
            assert delta_text(events[:-1], name) == "well, a < b"
        assert events[-1]["usage"] == body["usage"]
        assert events[-2]["choices"][0]["finish_reason"] == "stop"
        assert events[-2]["choices"][0]["delta"]["content"]
        assert not any(event["choices"][0]["delta"] == {} for event in events[:-1])


@pytest.mark.parametrize("tokens_per_step", [1, 4, 100])
@pytest.mark.parametrize(
    ("text", "max_tokens", "head", "counted"),
    [
        (TEXT, 100, ">", "<think>\nwell, a < b\n</think>"),
        ("well, a < b</think>\n\nhello world!", 100, "><think>\n", "well, a < b</think>"),
        ("well, a < b", 5, "><think>\n", "well, "),
        ("hello world!", 100, "><think>\n\n</think>\n\n", ""),
        ("hello world!", 100, ">", ""),
    ],
)
async def test_tokens_of_thinking_are_counted(serve, tokenizer, tokens_per_step, text, max_tokens, head, counted):
    async with serve(text, tokens_per_step=tokens_per_step, model=THINKS) as server:
        server.template.answer_head = head
        usage = (await server.chat(max_tokens=max_tokens)).json()["usage"]
        expected = len(tokenizer.encode(counted, add_special_tokens=False).ids)
        told = usage.get("completion_tokens_details", {}).get("reasoning_tokens", 0)
        opening = len(tokenizer.encode("<think", add_special_tokens=False).ids) if counted.startswith("<") else 0
        assert told == expected - opening  # this vocabulary writes the tag in pieces; from its last one on it thinks


async def test_thinking_that_the_prompt_opens_has_no_tag(serve):
    async with serve("well</think>hello", model=THINKS) as server:
        server.template.answer_head = "><think>\n"
        message = (await server.chat("what does <think> mean?")).json()["choices"][0]["message"]
        assert (message["reasoning"], message["content"]) == ("well", "hello")


async def test_a_tag_in_the_question_opens_nothing(serve):
    async with serve("hello", model=THINKS) as server:
        message = (await server.chat("what does <think> mean?")).json()["choices"][0]["message"]
        assert message["content"] == "hello"
        assert "reasoning" not in message


async def test_unfinished_thinking_is_no_content(serve):
    async with serve("<think>well, well", model=THINKS) as server:
        choice = (await server.chat(max_tokens=12)).json()["choices"][0]
        assert choice["finish_reason"] == "length"
        assert choice["message"]["content"] is None
        assert choice["message"]["reasoning"] == "well, w"
        events = await server.chat_events(max_tokens=12)
        assert delta_text(events, "content") == ""
        assert delta_text(events, "reasoning") == "well, w"
        assert events[-1]["choices"][0]["finish_reason"] == "length"


async def test_thinking_is_left_out_on_request_and_still_counted(serve):
    async with serve(TEXT, model=THINKS) as server:
        body = (await server.chat(include_reasoning=False)).json()
        assert "reasoning" not in body["choices"][0]["message"]
        assert body["choices"][0]["message"]["content"] == "hello world!"
        assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] > 5
        events = await server.chat_events(include_reasoning=False)
        assert delta_text(events, "content") == "hello world!"
        assert delta_text(events, "reasoning") == ""


async def test_without_a_parser_thinking_is_content(serve):
    async with serve(TEXT) as server:
        body = (await server.chat()).json()
        assert body["choices"][0]["message"]["content"] == TEXT
        assert "completion_tokens_details" not in body["usage"]


async def test_completions_tell_their_text_as_it_is(serve):
    async with serve(TEXT, model=THINKS) as server:
        assert (await server.complete(max_tokens=100)).json()["choices"][0]["text"] == TEXT


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"reasoning_effort": "high"}, {"reasoning_effort": "high", "enable_thinking": True, "thinking": True}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False, "thinking": False}),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}},
            {"reasoning_effort": "low", "enable_thinking": False, "thinking": True},
        ),
    ],
)
async def test_effort_reaches_the_template(server, fields, expected):
    assert (await server.chat(**fields)).status_code == 200
    assert server.template.renders[0][3] == expected


async def test_bad_effort_is_named(server):
    response = await server.chat(reasoning_effort="enormous")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "reasoning_effort")


async def test_thinking_of_earlier_turns_is_accepted(server):
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "yes?", "reasoning": "hm", "reasoning_content": "hm"},
        {"role": "user", "content": "go on"},
    ]
    response = await server.client.post("/v1/chat/completions", json={"messages": messages})
    assert response.status_code == 200
    assert server.template.renders[0][0][1]["reasoning"] == "hm"


@pytest.mark.parametrize("tokens_per_step", [1, 100])
async def test_calls_come_after_thinking(serve, tokens_per_step):
    text = '<think>shall I <tool_call>?</think>\n<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
    model = {"tool_parser": hermes, **THINKS}
    async with serve(text, tokens_per_step=tokens_per_step, model=model, max_model_len=512) as server:
        choice = (await server.chat(tools=TOOLS)).json()["choices"][0]
        assert choice["message"]["reasoning"] == "shall I <tool_call>?"
        assert choice["message"]["tool_calls"][0]["function"]["name"] == "clock"
        assert choice["finish_reason"] == "tool_calls"
        events = await server.chat_events(tools=TOOLS)
        assert delta_text(events, "reasoning") == "shall I <tool_call>?"
        assert joined(events) == [("clock", {})]


# ---------------------------------------------------------------- what binds the answer

GOOD, BAD = '{"a": 5}', "{}"
FORCED = {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "clock"}}}


@pytest.mark.parametrize(
    ("head", "good", "bad"),
    [
        ("><think>\n", [f"hm\n{{</think>\n\n{GOOD}"], [GOOD, f"hm {GOOD}", f"hm</think>{BAD}"]),
        (">", [GOOD, f"<think>hm</think>\n{GOOD}"], [f"hm</think>{GOOD}", f"<think>hm</think>{BAD}", BAD]),
        ("><think>\n\n</think>\n\n", [GOOD], [f"<think>hm</think>\n{GOOD}", f"hm</think>{GOOD}", BAD]),
    ],
)
async def test_binding_begins_where_thinking_ends(serve, tokenizer, head, good, bad):
    async with serve(model=THINKS) as server:
        server.template.answer_head = head
        assert (await server.chat(response_format=json_schema())).status_code == 200
        grammar = server.engine.calls[0].params.grammar
        for text in good:
            assert accepts(tokenizer, grammar, text), text
        for text in bad:
            assert not accepts(tokenizer, grammar, text), text


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"structured_outputs": {"regex": "a+"}}, "aa"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "no"),
        ({"structured_outputs": {"grammar": 'start: B\nB: "b"+'}}, "bb"),
        ({"structured_outputs": {"grammar": 'root ::= "a" num\nnum ::= [0-9]+'}}, "a12"),
        ({"structured_outputs": {"json": SCHEMA}}, GOOD),
        (FORCED, "{}"),
        ({"tools": TOOLS, "tool_choice": "required"}, '[{"name": "clock", "arguments": {}}]'),
    ],
)
async def test_every_kind_of_grammar_can_follow_thinking(serve, tokenizer, fields, answer):
    async with serve(model=THINKS) as server:
        server.template.answer_head = "><think>\n"
        response = await server.chat(**fields)
        assert response.status_code == 200, response.text
        grammar = server.engine.calls[0].params.grammar
        assert accepts(tokenizer, grammar, f"hm</think>{answer}")
        assert not accepts(tokenizer, grammar, answer)


@pytest.mark.parametrize("tokens_per_step", [1, 100])
async def test_forced_call_after_thinking_is_told(serve, tokens_per_step):
    async with serve("hm</think>\n\n{}", tokens_per_step=tokens_per_step, model=THINKS) as server:
        server.template.answer_head = "><think>\n"
        message = (await server.chat(**FORCED)).json()["choices"][0]["message"]
        assert message["reasoning"] == "hm"
        assert message["tool_calls"][0]["function"] == {"name": "clock", "arguments": "{}"}
        assert joined(await server.chat_events(**FORCED)) == [("clock", {})]
