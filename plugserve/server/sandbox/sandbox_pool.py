"""Sandboxes that share one bounded queue, which takes turns between senders and drops the questions of clients who
disconnect.

An account has at most one question in progress, so that slow questions of one account leave a process to others.
"""

from __future__ import annotations

import asyncio
import functools
from asyncio.subprocess import Process
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from plugserve.core.errors import QueueFullError, RequestError
from plugserve.server.sandbox.fair_queue import ANONYMOUS, FairQueue, Sender
from plugserve.server.sandbox.sandbox import Sandbox

NUM_PROCESSES: Final = 2
MAX_WAITING: Final = 512
MAX_WAITING_PER_ACCOUNT: Final = 64

Answer = dict[str, Any]


@dataclass(eq=False, slots=True)
class _Question:
    """known is called right before the work: another question may have found the answer meanwhile."""

    sender: Sender
    question: dict[str, Any]
    known: Callable[[], Answer | None]
    answer: asyncio.Future[Answer]
    work: asyncio.Task[Answer] | None = None

    @property
    def is_left(self) -> bool:
        """Its client has disconnected."""
        return self.answer.cancelled()


class SandboxPool:
    """Sandboxes of one kind (see Sandbox). The first starts with the first question, others when accounts ask at the
    same time. Belongs to the event loop that it is first used on."""

    def __init__(
        self,
        module: str,
        set_up: dict[str, Any],
        *,
        name: str,
        timeout_s: float,
        num_processes: int = NUM_PROCESSES,
        max_waiting: int = MAX_WAITING,
        max_waiting_per_account: int = MAX_WAITING_PER_ACCOUNT,
        is_kept: bool = True,
    ) -> None:
        self._name = name
        self._max_waiting = max_waiting
        self._max_waiting_per_account = max_waiting_per_account
        self._sandboxes = [
            Sandbox(module, set_up, name=name, timeout_s=timeout_s, is_kept=is_kept) for _ in range(num_processes)
        ]
        self._free = list(reversed(self._sandboxes))
        self._waiting: FairQueue[_Question] = FairQueue()
        self._under_way: set[_Question] = set()
        self._is_closed = False

    @property
    def process(self) -> Process | None:
        """The first child; None while there is none."""
        return self._sandboxes[0].process

    async def start(self) -> None:
        """Start the first child now rather than at the first question. Raises RequestError."""
        await self._sandboxes[0].start()

    async def ask(
        self, question: dict[str, Any], sender: Sender = ANONYMOUS, known: Callable[[], Answer | None] = lambda: None
    ) -> Answer:
        """A child's answer. Raises RequestError when it takes too long or ends its process, QueueFullError when too
        many questions wait."""
        if self._is_closed:
            raise RequestError("the server is shutting down", status=499)
        self._check_room(sender)
        entry = _Question(sender, question, known, asyncio.get_running_loop().create_future())
        self._waiting.put(sender, entry)
        self._go_on()
        try:
            return await entry.answer
        finally:
            if entry.is_left:
                self._waiting.remove(sender, entry)
                self._go_on()

    def _check_room(self, sender: Sender) -> None:
        if self._waiting.num_waiting(sender.account) >= self._max_waiting_per_account:
            raise QueueFullError(
                f"{self._max_waiting_per_account} of your requests wait for a {self._name} already; "
                "try again when one of them is answered."
            )
        if len(self._waiting) >= self._max_waiting:
            raise QueueFullError(
                f"{self._max_waiting} requests wait for a {self._name} already; try again in a moment."
            )

    def _go_on(self) -> None:
        """Give questions to free sandboxes. If none is free, end the work of a client who has disconnected."""
        while self._free and (entry := self._waiting.take(self._busy_accounts())) is not None:
            self._under_way.add(entry)
            sandbox = self._free.pop()
            entry.work = asyncio.get_running_loop().create_task(self._work(sandbox, entry))
            entry.work.add_done_callback(functools.partial(self._note_end, sandbox, entry))
        if len(self._waiting) and not self._free:
            left = [entry.work for entry in self._under_way if entry.is_left and entry.work is not None]
            for work in left[: len(self._waiting)]:
                if not work.cancelling():
                    work.cancel()

    def _busy_accounts(self) -> set[str]:
        return {entry.sender.account for entry in self._under_way if not entry.is_left}

    async def _work(self, sandbox: Sandbox, entry: _Question) -> Answer:
        known = entry.known()
        return known if known is not None else await sandbox.ask(entry.question)

    def _note_end(self, sandbox: Sandbox, entry: _Question, work: asyncio.Task[Answer]) -> None:
        """Called even for work that was cancelled before it began."""
        self._under_way.discard(entry)
        self._free.append(sandbox)
        error = None if work.cancelled() else work.exception()
        if entry.answer.done():
            pass
        elif work.cancelled():
            entry.answer.cancel()
        elif error is not None:
            entry.answer.set_exception(error)
        else:
            entry.answer.set_result(work.result())
        if not self._is_closed:
            self._go_on()

    async def close(self) -> None:
        """End the children. Questions that wait or are under way are cancelled; later ones are refused."""
        self._is_closed = True
        while (entry := self._waiting.take()) is not None:
            entry.answer.cancel()
        tasks = [entry.work for entry in self._under_way if entry.work is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for sandbox in self._sandboxes:
            await sandbox.close()
