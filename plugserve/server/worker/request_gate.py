"""Counts the requests that use a model, and holds back those that come while it can't serve."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable


def _nothing() -> None:
    """The default of a callback."""


class RequestGate:
    """One for each model of a worker. Lives on the worker's event loop.

    on_use is called when the count changes, on_idle when it falls to zero. keep_alive_s is that of the last request
    that began: how long the model stays loaded after it, None for the server's rule.
    """

    def __init__(self) -> None:
        self.num_requests = 0
        self.last_used_s = 0.0
        self.keep_alive_s: float | None = None
        self.on_use: Callable[[], None] = _nothing
        self.on_idle: Callable[[], None] = _nothing
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def has_waiting(self) -> bool:
        """Requests wait for the model."""
        return bool(self._waiting)

    def begin(self) -> None:
        """Count a request; end follows."""
        self.num_requests += 1
        self._note_use()

    def end(self) -> None:
        self.num_requests -= 1
        self._note_use()
        if not self.num_requests:
            self.on_idle()

    def _note_use(self) -> None:
        self.last_used_s = time.monotonic()
        self.on_use()

    async def wait(self, timeout_s: float | None) -> None:
        """Wait until admit_waiting; the request is counted then. Raises TimeoutError, or what fail_waiting is given."""
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(admitted)
        try:
            async with asyncio.timeout(timeout_s):
                await admitted
        except BaseException:
            if admitted in self._waiting:
                self._waiting.remove(admitted)
            elif admitted.done() and not admitted.cancelled() and admitted.exception() is None:
                self.end()  # it was admitted as it gave up
            raise

    def admit_waiting(self) -> None:
        """Let all that wait begin. They are counted at once, so that the model can't be taken from them."""
        while self._waiting:
            admitted = self._waiting.popleft()
            if not admitted.done():
                self.begin()
                admitted.set_result(None)

    def fail_waiting(self, error: Exception) -> None:
        while self._waiting:
            admitted = self._waiting.popleft()
            if not admitted.done():
                admitted.set_exception(error)
