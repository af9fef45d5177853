"""A child process that does foreign work and may be killed: one question, one answer. Knows nothing of the work.

The child (a module that runs sandbox_process.serve) starts with the first question, is killed when an answer takes too
long, and starts again for the next one. Questions queue up; one that waits is never lost to another's kill.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from asyncio.subprocess import PIPE, Process
from typing import Any

from plugserve.core.errors import RequestError
from plugserve.server.sandbox.sandbox_process import LENGTH

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 10.0


class Sandbox:
    """The child that runs module. Belongs to the event loop that it is first used on.

    name is what logs and errors call the work. set_up is told to each new child first; when it refuses that (an answer
    with "error"), setup_error keeps the reason and every question is refused with it.
    """

    def __init__(self, module: str, set_up: dict[str, Any], *, name: str, timeout_s: float) -> None:
        self._module = module
        self._set_up = set_up
        self._name = name
        self._timeout_s = timeout_s
        self.process: Process | None = None
        self.setup_error: str | None = None
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[dict[str, Any]]] = set()
        self._is_closed = False

    async def start(self) -> None:
        """Start the child now rather than at the first question. Raises RequestError."""
        async with self._lock:
            await self._running_process()

    async def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The child's answer. Raises RequestError when it takes too long or ends its process."""
        # A client that goes away cancels us, but not the exchange: half an answer left in the pipe would be taken
        # for the next one's.
        task = asyncio.create_task(self._exchange(json.dumps(question).encode()))
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """End the child. Questions that are under way fail; later ones are refused."""
        self._is_closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._kill()

    def _forget(self, task: asyncio.Task[dict[str, Any]]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # taken note of, in case nobody waits for it any more

    async def _exchange(self, question: bytes) -> dict[str, Any]:
        """Send one question to the child and take its answer. One at a time."""
        async with self._lock:
            for _ in range(2):
                process = await self._running_process()
                try:
                    async with asyncio.timeout(self._timeout_s):
                        return await _ask(process, question)
                except TimeoutError:
                    await self._kill()
                    logger.warning("%s killed: reason=timeout limit_s=%g", self._name, self._timeout_s)
                    raise RequestError(f"the {self._name} took longer than {self._timeout_s:g} s") from None
                except (ConnectionError, asyncio.IncompleteReadError):
                    await self._kill()
                    logger.warning("%s process died: exit_code=%s", self._name, process.returncode)
            raise RequestError(f"the {self._name} ended the process that works on it")

    async def _running_process(self) -> Process:
        """The child, started and set up if need be. Call under the lock."""
        if self._is_closed:
            raise RequestError("the server is shutting down", status=499)
        if self.setup_error is not None:
            raise RequestError(self.setup_error)
        if self.process is not None and self.process.returncode is None:
            return self.process
        process = await asyncio.create_subprocess_exec(*(sys.executable, "-m", self._module), stdin=PIPE, stdout=PIPE)
        self.process = process
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                answer = await _ask(process, json.dumps(self._set_up).encode())
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            await self._kill()
            raise RequestError(f"the process for the {self._name} did not start") from None
        if "error" in answer:
            await self._kill()
            self.setup_error = f"the {self._name} can't be compiled: {answer['error']}"
            raise RequestError(self.setup_error)
        return process

    async def _kill(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()


async def _ask(process: Process, question: bytes) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(LENGTH.pack(len(question)) + question)
    await process.stdin.drain()
    (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
    answer: dict[str, Any] = json.loads(await process.stdout.readexactly(length))
    return answer
