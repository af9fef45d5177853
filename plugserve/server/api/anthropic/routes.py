"""POST /v1/messages/count_tokens; /v1/messages itself generates (routes/generate.py)."""

from __future__ import annotations

from typing import Any

import orjson
from sanic import Request, Sanic
from sanic.response import HTTPResponse

from plugserve.server.api.anthropic.body import CountBody, chat_body
from plugserve.server.api.chat import body as chat
from plugserve.server.api.error_responses import JSON_TYPE
from plugserve.server.api.generation_body import parse_body
from plugserve.server.pipeline.exchange import json_object, model_name
from plugserve.server.pipeline.prompts import chat_prompts
from plugserve.server.worker.server_state import state_of


def add_routes(app: Sanic[Any, Any]) -> None:
    app.add_route(count_tokens, "/v1/messages/count_tokens", methods=["POST"], name="count_tokens")


async def count_tokens(request: Request) -> HTTPResponse:
    """How many tokens a conversation's prompt has."""
    state = state_of(request)
    body = json_object(request, request.ctx.view.body)
    await state.wait_until_started()
    model = state.models.find(model_name(body))
    text, limits = model.ready_text, model.limits(state.max_logprobs)
    asked, _ = chat_body(CountBody, {name: value for name, value in body.items() if name != "max_tokens"})
    asked.pop("stream", None)
    parsed, _ = parse_body(chat.ChatBody, asked, known=chat.KNOWN)
    prompt = (await chat_prompts(parsed, text, limits, state.pool))[0]
    return HTTPResponse(orjson.dumps({"input_tokens": len(prompt.token_ids)}), content_type=JSON_TYPE)
