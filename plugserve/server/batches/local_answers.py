"""Answers the lines of a batch in this process, by the path of requests over HTTP."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import orjson

from plugserve.core.contracts.requests import Identity, RequestView
from plugserve.core.errors import EngineUnavailableError, QueueFullError
from plugserve.server.api.chat.routes import ChatApi
from plugserve.server.api.completions.routes import CompletionApi
from plugserve.server.api.embeddings.routes import EmbeddingsApi
from plugserve.server.api.error_responses import describe
from plugserve.server.api.rerank.routes import RerankApi, ScoreApi
from plugserve.server.api.responses.responses_api import ResponsesApi
from plugserve.server.batches.lines import Line, answered
from plugserve.server.pipeline.direct import DirectRequests
from plugserve.server.pipeline.generation_api import GenerationApi
from plugserve.server.worker.server_state import ServerState

_QUEUE_FULL_S: Final = 1.0

Unavailable = Callable[[EngineUnavailableError, int], Awaitable[None]]
"""Called when no engine takes a line, with the number of its attempts: waits for one, or raises to end the run."""


class LocalAnswers:
    """identity is the sender of all lines. further fields are added to each body (a priority)."""

    def __init__(
        self,
        state: ServerState,
        requests: DirectRequests,
        wait_for_engine: Unavailable,
        *,
        identity: Identity | None = None,
        further: Mapping[str, Any] | None = None,
    ) -> None:
        self._requests = requests
        self._wait_for_engine = wait_for_engine
        self._identity = identity
        self._further = dict(further or {})
        self._account = "batch " + (identity.name if identity is not None else "")
        self._apis: dict[str, GenerationApi] = {
            "/v1/chat/completions": ChatApi(),
            "/v1/completions": CompletionApi(),
            "/v1/embeddings": EmbeddingsApi(),
            "/v1/responses": ResponsesApi(state.responses),
            "/v1/rerank": RerankApi(),
            "/v1/score": ScoreApi(),
        }

    async def answer(self, line: Line) -> tuple[int, bytes]:
        """The status, and the line of the result; a request that fails has its error there. Raises what the wait for an
        engine raises."""
        assert line.body is not None
        body = {**line.body, **self._further}
        model = body.get("model")
        num_attempts = 0
        while True:
            view = RequestView(
                uuid.uuid4().hex,
                line.url,
                "POST",
                {},
                "",
                model=model if isinstance(model, str) else None,
                body=body,
                identity=self._identity,
            )
            try:
                data = await self._requests.response(self._apis[line.url], view, body, self._account)
                return 200, answered(line, 200, view.id, data)
            except QueueFullError:
                await asyncio.sleep(_QUEUE_FULL_S)
            except EngineUnavailableError as error:
                num_attempts += 1
                await self._wait_for_engine(error, num_attempts)
            except Exception as error:
                status, described = describe(error)
                return status, answered(line, status, view.id, orjson.dumps(described))
