"""Stored responses by id, as bytes.

The supervisor keeps them (BoundedStore), because any worker may get the request; workers reach them over the control
socket (ControlResponseStore). They are in memory: a restart of the server loses them, one of a worker or engine does
not.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from plugserve.core.errors import EngineUnavailableError
from plugserve.core.wire.messages import ResponseCall, ResponseReply

logger = logging.getLogger(__name__)

MAX_RESPONSES: Final = 10_000
MAX_BYTES: Final = 256 * 2**20
_ANSWER_S: Final = 5.0


def stored_id(owner: str, id: str) -> str:
    """The key of a stored response. It contains the owner, so that no other tenant can find the response by its id."""
    return f"{hashlib.sha256(owner.encode()).hexdigest()}:{id}"


class ResponseStore(Protocol):
    """The store's interface for routes. Raises EngineUnavailableError (503) when the store doesn't answer."""

    async def keep(self, id: str, record: bytes) -> None: ...

    async def find(self, id: str) -> bytes | None: ...

    async def forget(self, id: str) -> bool:
        """False where there is none."""


class BoundedStore:
    """Keeps at most max_count records of max_bytes in total; the least recently used one is removed first."""

    def __init__(self, max_count: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._records: OrderedDict[str, bytes] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    def keep(self, id: str, record: bytes) -> None:
        self.forget(id)
        self._records[id] = record
        self.num_bytes += len(record)
        while len(self._records) > self._max_count or self.num_bytes > self._max_bytes:
            self.num_bytes -= len(self._records.popitem(last=False)[1])

    def find(self, id: str) -> bytes | None:
        if id in self._records:
            self._records.move_to_end(id)
        return self._records.get(id)

    def forget(self, id: str) -> bool:
        record = self._records.pop(id, None)
        self.num_bytes -= len(record or b"")
        return record is not None

    def answer(self, call: ResponseCall) -> ResponseReply:
        """Handle a worker's call over the control socket."""
        if call.record is not None:
            self.keep(call.id, call.record)
            return ResponseReply(call.call_id, is_found=True)
        if call.is_deletion:
            return ResponseReply(call.call_id, is_found=self.forget(call.id))
        record = self.find(call.id)
        return ResponseReply(call.call_id, is_found=record is not None, record=record)


class LocalResponseStore:
    """A store in this process, for a server of one process."""

    def __init__(self, store: BoundedStore | None = None) -> None:
        self._store = store if store is not None else BoundedStore()

    async def keep(self, id: str, record: bytes) -> None:
        self._store.keep(id, record)

    async def find(self, id: str) -> bytes | None:
        return self._store.find(id)

    async def forget(self, id: str) -> bool:
        return self._store.forget(id)


class ControlResponseStore:
    """The supervisor's store, from a worker. send puts a message on the control socket; replies come to note."""

    def __init__(self, send: Callable[[ResponseCall], Awaitable[None]]) -> None:
        self._send = send
        self._call_ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[ResponseReply]] = {}

    def note(self, reply: ResponseReply) -> None:
        """Handle the supervisor's reply."""
        waiting = self._waiting.get(reply.call_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(reply)

    async def keep(self, id: str, record: bytes) -> None:
        await self._call(ResponseCall(next(self._call_ids), id, record=record))

    async def find(self, id: str) -> bytes | None:
        return (await self._call(ResponseCall(next(self._call_ids), id))).record

    async def forget(self, id: str) -> bool:
        return (await self._call(ResponseCall(next(self._call_ids), id, is_deletion=True))).is_found

    async def _call(self, call: ResponseCall) -> ResponseReply:
        reply: asyncio.Future[ResponseReply] = asyncio.get_running_loop().create_future()
        self._waiting[call.call_id] = reply
        try:
            await self._send(call)
            async with asyncio.timeout(_ANSWER_S):
                return await reply
        except TimeoutError:
            logger.error("the supervisor did not answer in %.0f s about response id=%s", _ANSWER_S, call.id)
            raise EngineUnavailableError("Stored responses can't be reached now; try again in a moment.") from None
        finally:
            del self._waiting[call.call_id]
