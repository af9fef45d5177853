"""Bodies within the limits that would hold up the event loop: their faults are few, and cheap ones are found first."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import orjson
import pytest
from pydantic import ValidationError

from plugserve.core.errors import RequestError
from plugserve.server.api import json_body
from plugserve.server.api.anthropic.anthropic_tools import chat_tools as anthropic_tools
from plugserve.server.api.anthropic.body import MessagesBody
from plugserve.server.api.chat.body import ChatBody
from plugserve.server.api.responses.response_tools import chat_tools as response_tools
from plugserve.server.api.tokenize.body import DetokenizeBody, TokenizeBody
from plugserve.server.pipeline.generation import JOBS_A_TURN

MANY = 5000
CHAT = {"messages": [{"role": "user", "content": "x"}]}
MESSAGES = CHAT | {"max_tokens": 5}


@pytest.mark.parametrize(
    ("schema", "body", "field"),
    [
        (ChatBody, {"messages": [1] * MANY}, "messages.0"),
        (ChatBody, CHAT | {"allowed_token_ids": ["x"] * MANY}, "allowed_token_ids.0"),
        (ChatBody, CHAT | {"allowed_token_ids": [1] * MANY + ["x"] * MANY}, f"allowed_token_ids.{MANY}"),
        (ChatBody, CHAT | {"stop_token_ids": ["x"] * MANY}, "stop_token_ids.0"),
        (ChatBody, CHAT | {"bad_words": [1] * 250}, "bad_words.0"),
        (ChatBody, CHAT | {"bad_words": [1] * MANY}, "bad_words.0"),
        (ChatBody, CHAT | {"logit_bias": {str(id): "x" for id in range(MANY)}}, "logit_bias.0"),
        (ChatBody, CHAT | {"logit_bias": {"7": 1} | {str(id): 101 for id in range(MANY)}}, "logit_bias.7"),
        (ChatBody, CHAT | {"logit_bias": {"1": True, "2": None}}, "logit_bias.1"),
        (MessagesBody, MESSAGES | {"messages": [1] * MANY}, "messages.0"),
        (MessagesBody, MESSAGES | {"stop_sequences": [1] * MANY}, "stop_sequences.0"),
        (MessagesBody, MESSAGES | {"stop_sequences": [1] * 60}, "stop_sequences.0"),
        (DetokenizeBody, {"tokens": ["x"] * MANY}, "tokens.0"),
    ],
)
def test_list_of_faults_is_given_up_at_the_first(schema, body, field, monkeypatch):
    """An error object for each of 200,000 entries took 0.8 s."""
    counts = []
    to_error = json_body._request_error

    def counted(error: ValidationError):
        counts.append(error.error_count())
        return to_error(error)

    monkeypatch.setattr(json_body, "_request_error", counted)
    with pytest.raises(RequestError) as refused:
        json_body.validated(schema, body)
    assert counts == [1]
    assert str(refused.value).startswith(field + ":")


def test_good_biases_are_kept_whole():
    bias = {str(id): id / 100 - 50 for id in range(MANY)} | {"7": 100, "8": -100}
    assert json_body.validated(ChatBody, CHAT | {"logit_bias": bias}).logit_bias == bias


def test_messages_to_tokenize_are_checked_once():
    assert json_body.validated(TokenizeBody, {"messages": [1]}).messages == [1]  # by ChatBody, whose error names them


@pytest.mark.parametrize("read", [anthropic_tools, response_tools])
def test_tools_are_counted_before_they_are_read(read):
    with pytest.raises(RequestError, match="at most 128 tools"):
        read([1] * 129)


@pytest.mark.parametrize("body", [b'{"messages": [', b"[1]"])
async def test_body_that_is_no_object_is_parsed_once(serve, monkeypatch, body):
    parsed = []
    loads = orjson.loads
    monkeypatch.setattr(orjson, "loads", lambda data: (parsed.append(bytes(data)), loads(data))[1])
    async with serve() as server:
        response = await server.client.post(
            "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
        )
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_json"
    assert parsed.count(body) == 1


@pytest.mark.parametrize(
    ("path", "fields"), [("/v1/chat/completions", {}), ("/v1/messages", {"max_tokens": 5}), ("/tokenize", {})]
)
async def test_messages_that_can_only_be_too_long_are_not_rendered(serve, path, fields):
    async with serve() as server:

        async def never(*arguments, **more):
            pytest.fail("the template process got the text")

        server.template.render = never
        body = {"messages": [{"role": "user", "content": "x" * 100_000}] * 2} | fields
        response = await server.client.post(path, json=body)
        assert response.status_code == 400
        assert "the prompt has 200000 characters" in response.text


async def test_many_answers_of_one_request_leave_turns_to_others(serve):
    async with serve() as server:
        sent = [0]

        async def count():
            while True:
                sent.append(len(server.engine.calls))
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        response = await server.complete(prompt=["x"] * 16, n=128, max_tokens=1)
        counting.cancel()
        assert [choice["index"] for choice in response.json()["choices"]] == list(range(2048))
        assert max(later - earlier for earlier, later in pairwise(sent)) <= JOBS_A_TURN
