"""The routes that generate: POST /v1/chat/completions, /v1/completions and /v1/messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Coroutine
from typing import Any

from sanic import Request, Sanic
from sanic.response import HTTPResponse

from plugserve.core.errors import RequestError
from plugserve.server.endpoints import ChatEndpoint, CompletionEndpoint, Endpoint, MessagesEndpoint
from plugserve.server.exchange import Exchange, json_object
from plugserve.server.state import state_of

Handler = Callable[..., Coroutine[Any, Any, HTTPResponse | None]]


def add_routes(app: Sanic[Any, Any]) -> None:
    app.add_route(_handler(ChatEndpoint()), "/v1/chat/completions", methods=["POST"], name="chat_completions")
    app.add_route(_handler(CompletionEndpoint()), "/v1/completions", methods=["POST"], name="completions")
    app.add_route(_handler(MessagesEndpoint()), "/v1/messages", methods=["POST"], name="messages")


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
