"""Replays on an engine in this process, request by request as a server's worker would send them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from plugserve.core.errors import PlugserveError
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings import Settings
from plugserve.offline.local_server import LocalServer
from plugserve.replay.recording import Measured, ReplayRequest
from plugserve.server.supervisor.main import start_table
from plugserve.server.worker.engine_client import EngineClient

Outcome = Measured | str
"""What was measured, or why the request failed."""


class LocalTarget:
    """Loads the model. Raises UserError for wrong settings."""

    def __init__(self, settings: Settings, host: PluginHost) -> None:
        self._server = LocalServer.start(settings, host, start_table(settings, host))
        client: EngineClient = next(iter(self._server.state.models)).client
        self._client = client
        assert client.info is not None
        self.max_model_len: int | None = client.info.max_model_len
        self.vocab_size: int | None = client.info.vocab_size

    def run(self, requests: Sequence[ReplayRequest], rate: float) -> list[Outcome]:
        """Send each request at its time; returns when all have ended. An interrupt ends them and is raised."""
        return self._server.run(self._all(requests, rate))

    def close(self) -> None:
        self._server.close()

    async def _all(self, requests: Sequence[ReplayRequest], rate: float) -> list[Outcome]:
        started_s = time.perf_counter()
        return list(await asyncio.gather(*(self._one(one, started_s + one.offset_s / rate) for one in requests)))

    async def _one(self, request: ReplayRequest, at_s: float) -> Outcome:
        await asyncio.sleep(max(0.0, at_s - time.perf_counter()))
        waker = asyncio.Event()
        sent_s = time.perf_counter()
        first_s, num_tokens, finish = 0.0, 0, None
        try:
            stream = self._client.generate(request.prompt, request.params, priority=request.priority, waker=waker)
            while finish is None:
                await waker.wait()
                waker.clear()
                delta = stream.take()
                if delta is not None:
                    first_s = first_s or time.perf_counter()
                    num_tokens += len(delta.token_ids)
                    finish = delta.finish_reason
        except PlugserveError as error:
            return str(error)
        return measured(sent_s, first_s, time.perf_counter(), num_tokens)


def measured(sent_s: float, first_s: float, end_s: float, num_tokens: int) -> Measured:
    """From times of one clock."""
    itl_s = (end_s - first_s) / (num_tokens - 1) if num_tokens > 1 else None
    return Measured(first_s - sent_s, itl_s, end_s - sent_s)
