"""POST /v1/messages (Anthropic's chat) and /v1/messages/count_tokens."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import orjson
from sanic import Request, Sanic
from sanic.response import HTTPResponse

from plugserve.server.api.anthropic.body import CountBody, MessagesBody, parse_messages
from plugserve.server.api.anthropic.format import MessagesStream, MessagesWriter
from plugserve.server.api.json_body import JSON_TYPE, json_object, model_name
from plugserve.server.pipeline.exchange import generating
from plugserve.server.pipeline.generation_api import CheckedBody
from plugserve.server.pipeline.prompts import conversation_prompt
from plugserve.server.pipeline.time_limit import within
from plugserve.server.worker.server_state import state_of


class MessagesApi:
    """Anthropic's Messages."""

    operation = "chat"
    id_prefix = "msg_"

    async def read(self, body: Mapping[str, Any], owner: str) -> CheckedBody:
        parsed, ignored = parse_messages(MessagesBody, body)
        return CheckedBody(parsed.request(), ignored, MessagesWriter, MessagesStream)


def add_routes(app: Sanic[Any, Any]) -> None:
    app.add_route(generating(MessagesApi()), "/v1/messages", methods=["POST"], name="messages")
    app.add_route(count_tokens, "/v1/messages/count_tokens", methods=["POST"], name="count_tokens")


async def count_tokens(request: Request) -> HTTPResponse:
    """Count the tokens of a conversation's prompt."""
    state = state_of(request)
    body = json_object(request, request.ctx.view.body)
    parsed, _ = parse_messages(CountBody, body)
    async with within(state.limits.timeout_s, time.perf_counter()), state.text_of(model_name(body)) as (text, limits):
        sender = state.access.sender_of(request)
        prompt = await conversation_prompt(parsed.conversation(), text, limits, state.pool, sender)
    return HTTPResponse(orjson.dumps({"input_tokens": len(prompt.token_ids)}), content_type=JSON_TYPE)
