"""Counts the requests that a process serves, so that it can refuse new ones and wait for the rest when it stops."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from plugserve.core.errors import EngineUnavailableError


class RequestsInFlight:
    """who ("server") is named to clients that come too late. For one event loop."""

    def __init__(self, who: str) -> None:
        self.is_stopping = False
        self.count = 0
        self._who = who
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a request while it is served. Raises EngineUnavailableError (503) once the process is stopping."""
        if self.is_stopping:
            raise EngineUnavailableError(f"The {self._who} is shutting down; send the request to another one.")
        self.count += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.count -= 1
            if not self.count:
                self._idle.set()

    async def ended(self) -> None:
        """Refuse new requests, and wait until none is served."""
        self.is_stopping = True
        await self._idle.wait()
