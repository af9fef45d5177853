"""One case for every parameter of chat and completions: what it does, or that it is refused by name."""

import json

import pytest

from plugserve.plugins.reasoning_parsers.think_tags import ThinkTags
from plugserve.plugins.tool_parsers.hermes import hermes
from plugserve.server.api.chat.body import ChatBody
from plugserve.server.api.completions.body import CompletionBody
from plugserve.server.operations.service_limits import ServiceLimits
from tests.server.api.test_structured import SCHEMA, accepts, json_schema
from tests.server.api.test_tools import TOOLS

CASES = {}


def case(*names, script="hello world!", **options):
    """The function below checks these parameters on a server that answers script."""

    def register(check):
        for name in names:
            CASES.setdefault(name, []).append((check, script, options))
        return check

    return register


async def params_of(server, **fields):
    """What a chat and a completion with fields ask the engine for; both agree."""
    for ask in (server.chat, server.complete):
        response = await ask(**fields)
        assert response.status_code == 200, response.text
        assert "x-plugserve-ignored-fields" not in response.headers
    chat, completion = server.engine.calls[-2:]
    return chat.params, completion.params


def passed_on(name, value, expected=None, field=None):
    @case(name)
    async def check(server):
        expected_value = value if expected is None else expected
        assert {getattr(params, field or name) for params in await params_of(server, **{name: value})} == {
            expected_value
        }


passed_on("temperature", 0.5)
passed_on("top_p", 0.25)
passed_on("top_k", 7)
passed_on("top_k", -1, expected=0)
passed_on("min_p", 0.125)
passed_on("presence_penalty", 1.5)
passed_on("frequency_penalty", -1.5)
passed_on("repetition_penalty", 1.25)
passed_on("seed", -(2**63))
passed_on("stop_token_ids", [5, 6, 5], expected=(5, 6))
passed_on("min_tokens", 2)
passed_on("prompt_logprobs", 3, field="num_prompt_logprobs")
passed_on("allowed_token_ids", [5, 6], expected=(5, 6))
passed_on("max_tokens", 3)


@case("ignore_eos")
async def _(server):
    for params in await params_of(server, ignore_eos=True, max_tokens=4):
        assert params.ignore_eos


@case("max_completion_tokens")
async def _(server):
    await server.chat(max_completion_tokens=2, max_tokens=9)
    assert server.engine.calls[0].params.max_tokens == 2  # the newer name wins


@case("logit_bias")
async def _(server):
    for params in await params_of(server, logit_bias={"40": 2.5}):
        assert params.logit_bias == {40: 2.5}


@case("bad_words")
async def _(server):
    for params in await params_of(server, bad_words=["hello"]):
        assert params.bad_words


@case("keep_alive")
async def check_keep_alive(server):
    await params_of(server, keep_alive="5m")
    assert next(iter(server.state.models)).gate.keep_alive_s == 300
    await params_of(server, keep_alive=-1)
    assert next(iter(server.state.models)).gate.keep_alive_s == -1
    for wrong in ("soon", True, [], "1" * 99):
        refused = await server.chat(keep_alive=wrong)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "keep_alive")


@case("priority", "cache_salt", "user")
async def _(server):
    await params_of(server, priority=-3, cache_salt="s", user="ann")
    assert {(call.priority, call.cache_salt, call.user) for call in server.engine.calls} == {(-3, "s", "ann")}


@case("model")
async def _(server):
    for ask in (server.chat, server.complete):
        assert (await ask(model="model")).json()["model"] == "fake/model"
        assert (await ask(model="other")).status_code == 404


@case("messages")
async def _(server):
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    for content in ("hel\nlo", parts):
        assert (await server.chat(content)).status_code == 200
    first, second = server.template.renders
    assert first[0] == second[0]
    for role in ("developer", "system", "tool", "critic"):
        messages = [{"role": role, "content": "x", "tool_call_id": "a", "name": "b"}]
        assert (await server.client.post("/v1/chat/completions", json={"messages": messages})).status_code == 200
        assert server.template.renders[-1][0][0]["role"] == role


@case("prompt")
async def _(server):
    for prompt, count in (("hello", 1), (["hello", "world"], 2), ([5, 6, 7], 1), ([[5, 6], [7]], 2)):
        body = (await server.complete(prompt)).json()
        assert [choice["index"] for choice in body["choices"]] == list(range(count))
    assert server.engine.calls[-1].prompt == [7]


@case("n")
async def _(server):
    for ask in (server.chat, server.complete):
        assert [choice["index"] for choice in (await ask(n=3, seed=5)).json()["choices"]] == [0, 1, 2]
    assert [call.params.seed for call in server.engine.calls] == [5, 6, 7] * 2


@case("logprobs", "top_logprobs")
async def _(server):
    chat = (await server.chat(logprobs=True, top_logprobs=2)).json()["choices"][0]["logprobs"]["content"]
    assert [len(entry["top_logprobs"]) for entry in chat] == [2] * 4
    completion = (await server.complete(logprobs=0)).json()["choices"][0]["logprobs"]
    assert [len(tops) for tops in completion["top_logprobs"]] == [1] * 4


@case("echo")
async def _(server):
    assert (await server.complete("hello", echo=True)).json()["choices"][0]["text"] == "hellohello world!"
    assert (await server.chat(echo=True)).json()["error"]["param"] == "echo"


@case("stop", "include_stop_str_in_output")
async def _(server):
    for included, text in ((False, "hello "), (True, "hello wor")):
        body = (await server.chat(stop=["wor"], include_stop_str_in_output=included)).json()["choices"][0]
        assert (body["message"]["content"], body["stop_reason"]) == (text, "wor")
        body = (await server.complete(stop="wor", include_stop_str_in_output=included)).json()["choices"][0]
        assert body["text"] == text


@case("stream", "stream_options")
async def _(server):
    for ask in (server.chat_events, server.complete_events):
        assert all("usage" not in event for event in await ask())
        events = await ask(stream_options={"include_usage": True})
        assert [event["usage"] for event in events[:-1]] == [None] * (len(events) - 1)
        assert events[-1]["choices"] == []
        totals = [
            event["usage"]["completion_tokens"]
            for event in await ask(stream_options={"include_usage": True, "continuous_usage_stats": True})
        ]
        assert totals == sorted(totals)
        assert totals[-1] == 4
    assert (await server.chat(stream_options={"include_usage": None})).status_code == 400


@case("skip_special_tokens", script=lambda call: [2, 40, 1])
async def _(server):
    for skip, text in ((None, "F"), (True, "F"), (False, "<|user|>F")):
        assert (await server.chat(skip_special_tokens=skip)).json()["choices"][0]["message"]["content"] == text
        assert (await server.complete(skip_special_tokens=skip)).json()["choices"][0]["text"] == text


@case("return_tokens_as_token_ids")
async def _(server):
    answer = await server.complete(logprobs=0, return_tokens_as_token_ids=True)
    tokens = answer.json()["choices"][0]["logprobs"]["tokens"]
    assert len(tokens) == 4
    assert all(token.removeprefix("token_id:").isdigit() for token in tokens)


@case("return_token_ids")
async def _(server):
    body = (await server.chat(return_token_ids=True)).json()
    assert body["prompt_token_ids"] == server.engine.calls[0].prompt
    assert len(body["choices"][0]["token_ids"]) == 4
    events = await server.chat_events(return_token_ids=True)
    ids = [id for event in events for id in event["choices"][0].get("token_ids", [])]
    assert ids == body["choices"][0]["token_ids"]


@case("request_id")
async def _(server):
    for ask, prefix in ((server.chat, "chatcmpl-"), (server.complete, "cmpl-")):
        response = await ask(request_id="mine")
        assert (response.json()["id"], response.headers["x-request-id"]) == (prefix + "mine", "mine")


@case("truncate_prompt_tokens")
async def _(server):
    await params_of(server, truncate_prompt_tokens=3)
    assert [len(call.prompt) for call in server.engine.calls] == [3, 2]


@case("response_format", "structured_outputs")
async def _(server):
    tokenizer_accepts = {
        "response_format": [
            ({"type": "json_object"}, '{"b": 1}', "[]"),
            (json_schema(), '{"a": 1}', "{}"),
        ],
        "structured_outputs": [
            ({"json": SCHEMA}, '{"a": 1}', "{}"),
            ({"regex": "a+"}, "aa", "b"),
            ({"choice": ["yes", "no"]}, "no", "maybe"),
            ({"grammar": 'start: "a" | "b"'}, "b", "c"),
        ],
    }
    from tests.server.fakes import byte_level_tokenizer

    tokenizer = byte_level_tokenizer()
    for name, values in tokenizer_accepts.items():
        for value, good, bad in values:
            for params in await params_of(server, **{name: value}):
                assert accepts(tokenizer, params.grammar, good)
                assert not accepts(tokenizer, params.grammar, bad)
    for params in await params_of(server, response_format={"type": "text"}):
        assert params.grammar == ""


CALL = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'


@case("tools", "tool_choice", "parallel_tool_calls", script=CALL * 2, model={"tool_parser": hermes}, max_model_len=512)
async def _(server):
    for fields, count in (({}, 2), ({"tool_choice": "auto"}, 2), ({"parallel_tool_calls": False}, 1)):
        message = (await server.chat(tools=TOOLS, **fields)).json()["choices"][0]["message"]
        assert [call["function"]["name"] for call in message["tool_calls"]] == ["clock"] * count
    message = (await server.chat(tools=TOOLS, tool_choice="none")).json()["choices"][0]["message"]
    assert message["content"] == CALL * 2
    assert not server.engine.calls[-1].params.grammar
    for choice in ("required", {"type": "function", "function": {"name": "clock"}}):
        await server.chat(tools=TOOLS, tool_choice=choice)
        assert server.engine.calls[-1].params.grammar


@case("tool_choice", script="{}")
async def _(server):
    response = await server.chat(tools=TOOLS, tool_choice="auto")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "tool_choice")
    assert "--enable-auto-tool-choice" in response.json()["error"]["message"]
    choice = {"type": "function", "function": {"name": "clock"}}
    message = (await server.chat(tools=TOOLS, tool_choice=choice)).json()["choices"][0]["message"]
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {}


@case("reasoning_effort", "include_reasoning", script="<think>hm</think>yes", model={"reasoning_parser": ThinkTags})
async def _(server):
    message = (await server.chat(reasoning_effort="low")).json()["choices"][0]["message"]
    assert (message["reasoning"], message["reasoning_content"], message["content"]) == ("hm", "hm", "yes")
    assert server.template.renders[0][3]["reasoning_effort"] == "low"
    message = (await server.chat(include_reasoning=False)).json()["choices"][0]["message"]
    assert "reasoning" not in message
    assert message["content"] == "yes"


@case("chat_template_kwargs")
async def _(server):
    await server.chat(chat_template_kwargs={"mood": "calm"})
    assert server.template.renders[0][3] == {"mood": "calm"}


@case("add_generation_prompt", "continue_final_message")
async def _(server):
    await server.chat(add_generation_prompt=False)
    await server.chat(continue_final_message=True)
    await server.chat()
    assert [render[1:3] for render in server.template.renders] == [(False, False), (False, True), (True, False)]
    assert (await server.chat(add_generation_prompt=True, continue_final_message=True)).status_code == 400


@case("chat_template")
async def _(server):
    response = await server.chat(chat_template="{{ messages }}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "chat_template")
    assert "--trust-request-chat-template" in response.json()["error"]["message"]


@case("chat_template", state={"limits": ServiceLimits(trusts_templates=True)})
async def _(server):
    await server.chat(chat_template="X")
    await server.chat()
    own, models = (call.prompt for call in server.engine.calls)
    assert own[1:] == models


WITHOUT_EFFECT = {
    "metadata": {"a": "b"},
    "service_tier": "auto",
    "prompt_cache_key": "k",
    "safety_identifier": "s",
    "store": False,
    "spaces_between_special_tokens": True,
}


@case(*WITHOUT_EFFECT)
async def _(server):
    plain = await params_of(server, seed=1)
    assert await params_of(server, seed=1, **WITHOUT_EFFECT) == plain


REFUSED = {
    "suffix": "x",
    "best_of": 2,
    "use_beam_search": True,
    "length_penalty": 0.5,
    "prompt_embeds": "x",
    "kv_transfer_params": {"a": 1},
    "watermark": True,
    "watermarking": True,
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "audio": {"voice": "x"},
    "modalities": ["text", "audio"],
    "prediction": {"type": "content", "content": "x"},
    "web_search_options": {"a": 1},
    "structural_tag": "x",
    "logits_processors": ["x"],
    "thinking_token_budget": 5,
    "watermarking_config": {"a": 1},
    "guided_json": {"type": "object"},
    "store": True,
}


@case(*REFUSED)
async def _(server):
    for name, value in REFUSED.items():
        for ask in (server.chat, server.complete):
            error = (await ask(**{name: value})).json()["error"]
            assert (error["param"], error["type"]) == (name, "invalid_request_error")
            assert name in error["message"]
    assert not server.engine.calls


ISSUED = """
    n max_tokens max_completion_tokens logprobs top_logprobs prompt_logprobs echo suffix logit_bias stop stop_token_ids
    include_stop_str_in_output min_tokens ignore_eos seed top_k min_p repetition_penalty bad_words allowed_token_ids
    truncate_prompt_tokens response_format structured_outputs tools tool_choice parallel_tool_calls stream_options
    priority cache_salt request_id return_token_ids skip_special_tokens spaces_between_special_tokens reasoning_effort
    chat_template chat_template_kwargs add_generation_prompt continue_final_message prompt user metadata store
    service_tier prompt_cache_key safety_identifier use_beam_search prompt_embeds kv_transfer_params watermarking
"""


def test_every_parameter_has_a_case():
    assert {*ISSUED.split(), *ChatBody.model_fields, *CompletionBody.model_fields} <= set(CASES)


@pytest.mark.parametrize(
    ("check", "script", "options"),
    [
        pytest.param(*entry, id=name + ("" if number == 0 else f"-{number}"))
        for name, entries in CASES.items()
        for number, entry in enumerate(entries)
        if all(entry not in CASES[other] for other in list(CASES)[: list(CASES).index(name)])
    ],
)
async def test_parameter(serve, check, script, options):
    async with serve(script, **options) as server:
        await check(server)


@pytest.mark.parametrize("stream", [False, True])
async def test_invocations_answer_as_the_route_that_the_body_is_for(server, stream):
    def comparable(response):
        body = response.text if stream else response.json()
        if stream:
            return [json.loads(line[6:])["choices"] for line in body.splitlines() if line.startswith("data: {")]
        return {name: value for name, value in body.items() if name not in ("id", "created")}

    bodies = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}], "stream": stream},
        "/v1/completions": {"prompt": "hello", "stream": stream},
    }
    if not stream:
        bodies["/v1/embeddings"] = {"input": "hello"}
    for path, body in bodies.items():
        expected = await server.client.post(path, json=body)
        told = await server.client.post("/invocations", json=body)
        assert told.status_code == expected.status_code == 200
        assert comparable(told) == comparable(expected)
    assert (await server.client.post("/invocations", json={})).json()["error"]["param"] == "messages"
