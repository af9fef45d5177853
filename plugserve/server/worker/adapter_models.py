"""LoRA adapters in a server worker: clients see each as a model, and the supervisor changes the list.

An adapter shares its base model's tokenizer, template and engine; its weights are in the engine only.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

from plugserve.core.contracts.engine_facts import EngineInfo, EngineStats
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.errors import EngineUnavailableError, RequestError
from plugserve.core.wire.block_hash import adapter_key
from plugserve.core.wire.messages import AdapterCall, AdapterInfo, AdapterReply
from plugserve.core.wire.request_origin import NO_ORIGIN, RequestOrigin
from plugserve.server.worker.engine_client import EngineClient
from plugserve.server.worker.served_models import ServedModel, TextSide
from plugserve.server.worker.token_stream import TokenStream

logger = logging.getLogger(__name__)

_ANSWER_S: Final = 120.0  # a large adapter on a slow disk, after another one


class AdapterClient:
    """The EngineClient of one adapter: its base model's, with every request marked."""

    def __init__(self, client: EngineClient, adapter_id: int) -> None:
        self.model = client.model
        self.abort = client.abort
        self.abort_all = client.abort_all
        self.last_stats = client.last_stats
        self._client = client
        self._adapter_id = adapter_id

    @property
    def state(self) -> str:
        return self._client.state

    @property
    def info(self) -> EngineInfo | None:
        return self._client.info

    @property
    def num_restarts(self) -> int:
        return self._client.num_restarts

    def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        user: str = "",
        cache_salt: str = "",
        block_hashes: bytes = b"",
        adapter_id: int = 0,
        origin: RequestOrigin = NO_ORIGIN,
        waker: asyncio.Event,
    ) -> TokenStream:
        return self._client.generate(
            prompt_token_ids,
            params,
            priority=priority,
            user=user,
            cache_salt=cache_salt,
            block_hashes=block_hashes,
            adapter_id=adapter_id or self._adapter_id,
            origin=origin,
            waker=waker,
        )

    async def stats(self) -> EngineStats:
        return await self._client.stats()

    async def close(self) -> None:
        """Nothing: the base model closes the connection."""


class ServedAdapter(ServedModel):
    """An adapter as a model that requests can name."""

    def __init__(self, info: AdapterInfo, base: ServedModel) -> None:
        super().__init__((info.name,), AdapterClient(base.client, info.id))
        self._base = base
        self.created = info.created
        self.root = info.path
        self.parent = base.name
        self.metrics_name = base.name
        self.cache_key = adapter_key(info.id)

    @property
    def owner(self) -> ServedModel:
        return self._base

    @property
    def text(self) -> TextSide | None:
        return self._base.text

    @text.setter
    def text(self, text: TextSide | None) -> None:
        raise AttributeError("an adapter's text side is its base model's")


def served_adapters(models: Iterable[ServedModel], infos: Iterable[AdapterInfo]) -> dict[str, ServedModel]:
    """Adapters by name; infos name their base model as its engine does."""
    bases = {model.client.model: model for model in models}
    return {info.name: ServedAdapter(info, bases[info.model]) for info in infos if info.model in bases}


class ControlAdapters:
    """A worker's calls of the supervisor's adapter registry. send puts a message on the control socket; replies come to
    note."""

    def __init__(self, send: Callable[[AdapterCall], Awaitable[None]]) -> None:
        self._send = send
        self._call_ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[AdapterReply]] = {}

    def note(self, reply: AdapterReply) -> None:
        """Handle the supervisor's reply."""
        waiting = self._waiting.get(reply.call_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(reply)

    async def load(self, name: str, path: str, *, model: str = "", is_replacement: bool = False) -> None:
        """Load an adapter; returns once the engine and every worker have it. Raises RequestError or
        EngineUnavailableError."""
        await self._call(
            AdapterCall(call_id=next(self._call_ids), name=name, path=path, model=model, is_replacement=is_replacement)
        )

    async def unload(self, name: str) -> None:
        """Unload an adapter; returns once no worker accepts requests for it. Raises RequestError or
        EngineUnavailableError."""
        await self._call(AdapterCall(call_id=next(self._call_ids), name=name))

    async def _call(self, call: AdapterCall) -> None:
        reply: asyncio.Future[AdapterReply] = asyncio.get_running_loop().create_future()
        self._waiting[call.call_id] = reply
        try:
            await self._send(call)
            async with asyncio.timeout(_ANSWER_S):
                outcome = await reply
        except TimeoutError:
            logger.error("the supervisor did not answer in %.0f s about adapter name=%s", _ANSWER_S, call.name)
            raise EngineUnavailableError("Adapters can't be changed now; try again in a moment.") from None
        finally:
            del self._waiting[call.call_id]
        if outcome.status == 503:
            raise EngineUnavailableError(outcome.error)
        if outcome.status != 200:
            code, param = outcome.code or None, outcome.param or None
            raise RequestError(outcome.error, status=outcome.status, code=code, param=param)
