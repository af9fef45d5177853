"""The supervisor's connection to its children, and the tasks of its life: what its parts share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import msgspec
import zmq
import zmq.asyncio

from plugserve.core.errors import EngineError
from plugserve.core.wire.messages import encode
from plugserve.server.supervisor.process_slots import WorkerSlot

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Control:
    """Sends messages to engines and workers by their identity. stopping is set once the server shuts down, failure is
    then the reason, if it isn't a signal."""

    def __init__(self, workers: Sequence[WorkerSlot]) -> None:
        self._workers = workers
        self._tasks: set[asyncio.Task[Any]] = set()
        self.stopping = asyncio.Event()
        self.failure: Exception | None = None

    def open(self, address: str) -> None:
        """Listen to children; call it on the running loop."""
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(address)

    async def receive(self) -> tuple[bytes, bytes]:
        """The next message, and the identity of its sender."""
        identity, payload = await self._socket.recv_multipart()
        return identity, payload

    async def send(self, identity: bytes, message: msgspec.Struct) -> None:
        """A message to a process that isn't there is dropped."""
        await self._socket.send_multipart([identity, encode(message)])

    def listeners(self) -> list[bytes]:
        """The identities of the workers that answer messages."""
        return [worker.identity for worker in self._workers if worker.child is not None and worker.has_listened]

    async def broadcast(self, message: msgspec.Struct) -> list[bytes]:
        """Send to every worker; returns the identities of those that listen."""
        running = [worker for worker in self._workers if worker.child is not None]
        for worker in running:
            await self.send(worker.identity, message)
        return self.listeners()

    def spawn(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """A task that ends with the server. An exception in it ends the server."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._note_end)
        return task

    def _note_end(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("supervisor task failed", exc_info=error)
            self.give_up(EngineError(f"the supervisor failed: {type(error).__name__}: {error}"))

    def give_up(self, failure: Exception) -> None:
        """End the server because of failure."""
        if not self.stopping.is_set():
            self.failure = failure
            self.stopping.set()

    async def close(self) -> None:
        """Cancel all tasks, and close the socket."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._socket.close()
        self._context.term()
