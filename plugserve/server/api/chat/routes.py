"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sanic import Sanic

from plugserve.server.api.chat.body import ChatBody
from plugserve.server.api.chat.format import ChatStream, ChatWriter
from plugserve.server.api.generation_body import parse_body
from plugserve.server.pipeline.exchange import generating
from plugserve.server.pipeline.generation_api import CheckedBody


class ChatApi:
    """OpenAI's chat completions."""

    operation = "chat"
    id_prefix = "chatcmpl-"

    async def read(self, body: Mapping[str, Any], owner: str) -> CheckedBody:
        parsed, ignored = parse_body(ChatBody, body)
        return CheckedBody(parsed.request(), ignored, ChatWriter, ChatStream)


def add_routes(app: Sanic[Any, Any]) -> None:
    app.add_route(generating(ChatApi()), "/v1/chat/completions", methods=["POST"], name="chat_completions")
