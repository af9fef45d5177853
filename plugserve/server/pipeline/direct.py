"""Serves requests that come without HTTP: lines of batches, and calls in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from plugserve.core.contracts.requests import RequestView
from plugserve.server.pipeline.generation_api import Answer, GenerationApi
from plugserve.server.pipeline.served_request import Prepared, ServedRequest, report_ending
from plugserve.server.worker.server_state import ServerState

_NUM_PREPARED: Final = 16  # at a time: an account's queue of renders and grammars is bounded


class DirectRequests:
    """Many requests may run at the same time. Cancelling one aborts it."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._preparing = asyncio.Semaphore(_NUM_PREPARED)

    async def answers(
        self, api: GenerationApi, view: RequestView, body: Mapping[str, Any], account: str = ""
    ) -> tuple[Prepared, list[Answer]]:
        """The request's choices. Raises RequestError or EngineError."""
        async with self._served(api, view, body, account) as (served, prepared):
            return prepared, await served.answers(prepared.generation)

    async def response(
        self, api: GenerationApi, view: RequestView, body: Mapping[str, Any], account: str = ""
    ) -> bytes:
        """The body of the plain response. Raises RequestError or EngineError."""
        async with self._served(api, view, body, account) as (served, prepared):
            return await served.plain(prepared)

    @asynccontextmanager
    async def _served(
        self, api: GenerationApi, view: RequestView, body: Mapping[str, Any], account: str
    ) -> AsyncIterator[tuple[ServedRequest, Prepared]]:
        trace = self._state.tracer.begin(view.headers)
        token = trace.enter()
        served = ServedRequest(self._state, api, view, account, trace)
        try:
            async with served.life():
                async with self._preparing:
                    prepared = await served.prepare(lambda: body)
                yield served, prepared
        finally:
            if served.ending is not None:
                await report_ending(self._state.hooks, served.ending)
            trace.finish()
            trace.leave(token)
