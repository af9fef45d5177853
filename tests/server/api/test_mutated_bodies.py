"""Good bodies of every chat route with one thing in them replaced: an answer or a clear 4xx, never a 5xx."""

import copy
import random

import pytest

from plugserve.plugins.reasoning_parsers.think_tags import ThinkTags
from plugserve.plugins.tool_parsers.hermes import hermes
from tests.server.api.test_structured import json_schema
from tests.server.api.test_tools import TOOLS

CALL = {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "utc"}'}}
BODIES = {
    "/v1/chat/completions": {
        "messages": [
            {"role": "developer", "content": "be kind"},
            {"role": "user", "content": [{"type": "text", "text": "time?"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning": "hm"},
            {"role": "tool", "tool_call_id": "call_1", "content": "12:00"},
        ],
        "tools": TOOLS,
        "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TOOLS[0]]}},
        "reasoning_effort": "low",
        "chat_template_kwargs": {"a": 1},
        "stream_options": {"include_usage": True},
        "stream": True,
        "max_tokens": 20,
    },
    "/v1/responses": {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "time?"}]},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "function_call", "call_id": "call_1", "name": "clock", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "12:00"},
        ],
        "tools": [{"type": "function", **tool["function"]} for tool in TOOLS],
        "tool_choice": {"type": "function", "name": "clock"},
        "text": {"format": {"type": "json_schema", **json_schema()["json_schema"]}, "verbosity": "low"},
        "reasoning": {"effort": "low"},
        "metadata": {"a": "b"},
        "max_output_tokens": 20,
    },
    "/v1/messages": {
        "max_tokens": 20,
        "system": [{"type": "text", "text": "be kind"}],
        "messages": [
            {"role": "user", "content": "time?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": ""},
                    {"type": "tool_use", "id": "call_1", "name": "clock", "input": {"zone": "utc"}},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": "12:00"}]},
        ],
        "tools": [{"name": "clock", "description": "the time", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        "metadata": {"user_id": "ann"},
    },
    "/v1/messages/count_tokens": {
        "messages": [{"role": "user", "content": "time?"}],
        "tools": [{"name": "clock", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "auto"},
    },
    "/invocations": {"messages": [{"role": "user", "content": "x"}], "response_format": json_schema(), "max_tokens": 9},
}
HOSTILE = (
    None, True, 0, -1, 1.5, 2**70, "", "x", "\x00", "none", "x" * 5000, [], [[]], [None], ["x"], [{}], {},
    {"type": "x"}, {"": None}, {"type": []}, {"$ref": "#"}, {"name": 5}, [5] * 200,
)  # fmt: skip


def places(value, path=()):
    """Every place in a JSON value, as a path of keys."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def mutated(body, draw):
    """body with something replaced, removed or put in."""
    body = copy.deepcopy(body)
    *way, last = draw.choice([path for path in places(body) if path])
    node = body
    for key in way:
        node = node[key]
    kind = draw.random()
    if kind < 0.7:
        node[last] = draw.choice(HOSTILE)
    elif kind < 0.85:
        del node[last]
    elif isinstance(node, dict):
        node[draw.choice(["type", "name", "strict", "content", "function", "zzz"])] = draw.choice(HOSTILE)
    else:
        node.append(draw.choice(HOSTILE))
    return body


@pytest.mark.parametrize("takes_tools", [True, False])
@pytest.mark.parametrize("path", BODIES)
async def test_mutated_bodies_get_an_answer_or_a_clear_4xx(serve, path, takes_tools):
    draw = random.Random(path)
    model = {"tool_parser": hermes, "reasoning_parser": ThinkTags, "reads_json": True}
    async with serve("<think>hm</think>hello", model=model, max_model_len=4096) as server:
        server.template.takes_tools = takes_tools
        assert (await server.client.post(path, json=BODIES[path])).status_code == 200
        num_good = 0
        for _ in range(250):
            body = mutated(BODIES[path], draw)
            response = await server.client.post(path, json=body)
            assert response.status_code < 500, (body, response.text)
            num_good += response.status_code == 200
            if response.status_code != 200:
                message = response.json()["error"]["message"]
                assert "\n" not in message
                assert len(message) < 1000
        assert 20 < num_good < 240
