"""POST /invocations, SageMaker's one route: a chat, a completion or embeddings, by its body."""

from __future__ import annotations

from typing import Any, Final

from sanic import Request, Sanic
from sanic.response import HTTPResponse

from plugserve.server.api.chat.routes import ChatApi
from plugserve.server.api.completions.routes import CompletionApi
from plugserve.server.api.embeddings.routes import EmbeddingsApi
from plugserve.server.pipeline.exchange import generating

_chat: Final = generating(ChatApi())
_completion: Final = generating(CompletionApi())
_embeddings: Final = generating(EmbeddingsApi())


def add_routes(app: Sanic[Any, Any]) -> None:
    app.add_route(invocations, "/invocations", methods=["POST"], name="invocations")


async def invocations(request: Request) -> HTTPResponse | None:
    """A chat, unless the body has no messages and a prompt (a completion) or an input (embeddings)."""
    body = request.ctx.view.body or {}
    if "messages" not in body and "prompt" in body:
        return await _completion(request)
    if "messages" not in body and "input" in body:
        return await _embeddings(request)
    return await _chat(request)
