"""The routes that generate: POST /v1/chat/completions, /v1/completions and /v1/messages; and /invocations, which is
whatever its body asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Coroutine
from typing import Any

from sanic import Request, Sanic
from sanic.response import HTTPResponse

from plugserve.core.errors import RequestError
from plugserve.server.api.embeddings.routes import embeddings
from plugserve.server.pipeline.endpoints import ChatEndpoint, CompletionEndpoint, Endpoint, MessagesEndpoint
from plugserve.server.pipeline.exchange import Exchange, json_object
from plugserve.server.worker.server_state import state_of

Handler = Callable[..., Coroutine[Any, Any, HTTPResponse | None]]


def add_routes(app: Sanic[Any, Any]) -> None:
    app.add_route(_handler(ChatEndpoint()), "/v1/chat/completions", methods=["POST"], name="chat_completions")
    app.add_route(_handler(CompletionEndpoint()), "/v1/completions", methods=["POST"], name="completions")
    app.add_route(_handler(MessagesEndpoint()), "/v1/messages", methods=["POST"], name="messages")
    app.add_route(invocations, "/invocations", methods=["POST"], name="invocations")


async def invocations(request: Request) -> HTTPResponse | None:
    """SageMaker's one route: a chat, or a completion for a body with a prompt, or vectors for one with an input."""
    body = request.ctx.view.body or {}
    if "messages" not in body and "prompt" in body:
        return await serve_generation(CompletionEndpoint(), request)
    if "messages" not in body and "input" in body:
        return await embeddings(request)
    return await serve_generation(ChatEndpoint(), request)


def _handler(endpoint: Endpoint) -> Handler:
    async def handle(request: Request) -> HTTPResponse | None:
        return await serve_generation(endpoint, request)

    return handle


async def serve_generation(endpoint: Endpoint, request: Request) -> HTTPResponse | None:
    """Answer one request that generates; None after a stream. Raises what the client must be told."""
    state = state_of(request)
    view = request.ctx.view
    try:
        view = dataclasses.replace(view, body=json_object(request, view.body))
    except RequestError as error:
        await state.hooks.observe_async("plugserve_error", request=view, error=error)
        raise
    return await Exchange(state, endpoint, request, view).serve()
