"""An EngineClient of a model with several engines (--data-parallel-size): each request runs in one of them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import numpy as np

from plugserve.core.contracts.engine_facts import EngineInfo, EngineStats
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.errors import EngineUnavailableError
from plugserve.core.wire.block_hash import HASH_BYTES
from plugserve.core.wire.request_origin import NO_ORIGIN, RequestOrigin
from plugserve.server.balance.engine_choice import EngineChoice
from plugserve.server.worker.added_stats import added_stats
from plugserve.server.worker.engine_client import EngineClient, unavailable_message
from plugserve.server.worker.token_stream import TokenStream

_NO_BLOCK_SIZE: Final = 16  # of an engine that isn't known yet; it holds no prefixes either


class ReplicaClient(EngineClient, Protocol):
    """The client of one engine, which follows the supervisor's news."""

    def connect(self, addresses: Sequence[str], info: EngineInfo, num_restarts: int = 0) -> None: ...

    def disconnect(self, state: str, reason: str) -> None: ...


class ReplicatedClient:
    """clients are those of the model's engines, in their order. load gives the sequences of all workers in one of them,
    by its place."""

    def __init__(self, model: str, clients: Sequence[ReplicaClient], load: Callable[[int], int]) -> None:
        self.model = model
        self.clients = clients
        self._load = load
        self._state, self._reason = "loading", ""
        self._info: EngineInfo | None = None
        self._numbers = itertools.count()
        self._owners: list[int | None] = [None] * len(clients)  # of the current start of each engine; None while down
        self._addresses: list[str] = [""] * len(clients)
        self._choice = EngineChoice(_NO_BLOCK_SIZE)
        self.num_restarts = 0

    # ---- the supervisor's messages

    def connect(self, addresses: Sequence[str], info: EngineInfo, num_restarts: int = 0) -> None:
        """One address an engine, "" for one that is down."""
        if self._info is None or self._info.block_size != info.block_size:
            self._choice = EngineChoice(info.block_size)
        self._state, self._reason, self._info, self.num_restarts = "up", "", info, num_restarts
        for place, (client, address) in enumerate(zip(self.clients, addresses, strict=True)):
            if not address:
                self._owners[place] = None
                client.disconnect("dead", "this engine has died and is started again")
            else:
                if address != self._addresses[place] or self._owners[place] is None:
                    self._owners[place] = next(self._numbers)  # what it had computed before is gone
                client.connect([address], info, num_restarts)
            self._addresses[place] = address

    def disconnect(self, state: str, reason: str) -> None:
        """No engine takes requests."""
        self._state, self._reason = state, reason
        for place, client in enumerate(self.clients):
            self._owners[place] = None
            client.disconnect(state, reason)

    # ---- EngineClient

    @property
    def state(self) -> str:
        return self._state

    @property
    def reason(self) -> str:
        """Why no engine is up, in one line; for logs and /health."""
        return self._reason

    @property
    def info(self) -> EngineInfo | None:
        """The facts of one engine; all are alike."""
        return self._info

    @property
    def num_down(self) -> int:
        """Engines that have died and are started again, while others take requests."""
        return sum(owner is None for owner in self._owners) if self._state == "up" else 0

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
        return self._chosen(block_hashes).generate(
            prompt_token_ids,
            params,
            priority=priority,
            user=user,
            cache_salt=cache_salt,
            block_hashes=block_hashes,
            adapter_id=adapter_id,
            origin=origin,
            waker=waker,
        )

    def _chosen(self, block_hashes: bytes) -> ReplicaClient:
        places = {owner: place for place, owner in enumerate(self._owners) if owner is not None}
        if not places:
            raise EngineUnavailableError(unavailable_message(self.model, self._state))
        loads = {owner: self._load(place) for owner, place in places.items()}
        blocks = np.frombuffer(block_hashes, dtype="<u8")[:: HASH_BYTES // 8].tolist() if block_hashes else []
        return self.clients[places[self._choice.choose(loads, blocks)]]

    def abort(self, id: int) -> None:
        """Nothing: a stream is aborted by the client that made it."""

    def abort_all(self) -> None:
        for client in self.clients:
            client.abort_all()

    async def stats(self) -> EngineStats:
        """The sum of the engines that are up."""
        return added_stats(await asyncio.gather(*(client.stats() for client in self._up)))

    def last_stats(self) -> EngineStats:
        return added_stats([client.last_stats() for client in self._up])

    @property
    def _up(self) -> Sequence[ReplicaClient]:
        """The clients of engines that are up, of all where none is."""
        up = [client for client, owner in zip(self.clients, self._owners, strict=True) if owner is not None]
        return up or self.clients

    async def close(self) -> None:
        for client in self.clients:
            await client.close()
