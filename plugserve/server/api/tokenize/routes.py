"""POST /tokenize and /detokenize, both also under /v1."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import orjson
from sanic import Request, Sanic
from sanic.response import HTTPResponse

from plugserve.server.api.chat.body import ChatBody
from plugserve.server.api.generation_body import parse_body
from plugserve.server.api.json_body import JSON_TYPE, json_object, model_name, validated
from plugserve.server.api.tokenize.body import CHAT_FIELDS, DetokenizeBody, TokenizeBody, check_tokenize
from plugserve.server.pipeline.limits import Limits, check_token_ids
from plugserve.server.pipeline.prompts import conversation_prompt, encode_text
from plugserve.server.pipeline.time_limit import within
from plugserve.server.sandbox.fair_queue import Sender
from plugserve.server.worker.served_models import TextSide
from plugserve.server.worker.server_state import ServerState, state_of


def add_routes(app: Sanic[Any, Any]) -> None:
    for prefix, version in (("", ""), ("/v1", "_v1")):
        app.add_route(tokenize, f"{prefix}/tokenize", methods=["POST"], name=f"tokenize{version}")
        app.add_route(detokenize, f"{prefix}/detokenize", methods=["POST"], name=f"detokenize{version}")


async def tokenize(request: Request) -> HTTPResponse:
    """The tokens of a text, or of a conversation as the model's template writes it."""
    body, state = _body(request), state_of(request)
    async with state.text_of(model_name(body)) as (text, limits):
        return await _tokenize(request, state, body, text, limits)


async def _tokenize(
    request: Request, state: ServerState, body: Mapping[str, Any], text: TextSide, limits: Limits
) -> HTTPResponse:
    asked = validated(TokenizeBody, body)
    check_tokenize(asked)
    if asked.prompt is not None:
        token_ids = await encode_text(
            asked.prompt, text, limits, state.pool, "prompt", add_special_tokens=asked.add_special_tokens is not False
        )
    else:
        async with within(state.limits.timeout_s, time.perf_counter()):
            sender = state.access.sender_of(request)
            is_whole = bool(asked.add_special_tokens)
            token_ids = await _chat_tokens(body, text, limits, state, sender, with_special_tokens=is_whole)
    answer = {
        "count": len(token_ids),
        "max_model_len": limits.max_model_len,
        "tokens": token_ids,
        "token_strs": [text.vocabulary.token_text(id) for id in token_ids] if asked.return_token_strs else None,
    }
    return HTTPResponse(orjson.dumps(answer), content_type=JSON_TYPE)


async def _chat_tokens(
    body: Mapping[str, Any],
    text: TextSide,
    limits: Limits,
    state: ServerState,
    sender: Sender,
    *,
    with_special_tokens: bool,
) -> list[int]:
    fields = {name: value for name, value in body.items() if name in CHAT_FIELDS}
    parsed, _ = parse_body(ChatBody, fields)
    parsed.check()
    prompt = await conversation_prompt(parsed.conversation, text, limits, state.pool, sender)
    if not with_special_tokens or prompt.text is None:
        return prompt.token_ids
    return await encode_text(prompt.text, text, limits, state.pool, "messages", add_special_tokens=True)


async def detokenize(request: Request) -> HTTPResponse:
    """The text of token ids; special tokens are written out unless skip_special_tokens is true."""
    body, state = _body(request), state_of(request)
    async with state.text_of(model_name(body)) as (text, limits):
        return await _detokenize(state, body, text, limits)


async def _detokenize(state: ServerState, body: Mapping[str, Any], text: TextSide, limits: Limits) -> HTTPResponse:
    asked = validated(DetokenizeBody, body)
    check_token_ids(asked.tokens, limits.vocab_size, "tokens")
    prompt = await state.in_pool(
        lambda: text.vocabulary.decode(asked.tokens, skip_special_tokens=bool(asked.skip_special_tokens))
    )
    return HTTPResponse(orjson.dumps({"prompt": prompt}), content_type=JSON_TYPE)


def _body(request: Request) -> Mapping[str, Any]:
    return json_object(request, request.ctx.view.body)
