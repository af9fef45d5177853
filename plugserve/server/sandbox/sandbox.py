"""A child process for untrusted work that can be killed: one question, one answer.

The child (a module that runs sandbox_process.serve) starts with the first question, is killed when an answer takes too
long, and starts again for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any, Final

import orjson

from plugserve.core.errors import RequestError
from plugserve.server.sandbox.sandbox_process import LENGTH

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 10.0


_AT_WORK: Final = 0.1  # a child that got less CPU time than this share was slowed down by the machine


class TookTooLongError(RequestError):
    """The work exceeded its time or memory, and would again."""


class Sandbox:
    """The child that runs module. Belongs to the event loop that it is first used on.

    name is the work's name in logs and errors. set_up is the first message to each new child; if the child answers it
    with "error", setup_error keeps the reason and every question is refused with it. is_kept: the child is kept for the
    next question.
    """

    def __init__(
        self, module: str, set_up: dict[str, Any], *, name: str, timeout_s: float, is_kept: bool = True
    ) -> None:
        self._module = module
        self._set_up = set_up
        self._name = name
        self._timeout_s = timeout_s
        self._is_kept = is_kept
        self.process: Process | None = None
        self.setup_error: str | None = None
        self._lock = asyncio.Lock()
        self._is_closed = False

    async def start(self) -> None:
        """Start the child now rather than at the first question. Raises RequestError."""
        async with self._lock:
            await self._running_process()

    async def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The child's answer. One question at a time. Raises RequestError when it takes too long or ends its process.
        Cancelling it ends the child: half an answer left in the pipe would be taken for the next one's."""
        async with self._lock:
            try:
                return await self._exchange(_encoded(question))
            except asyncio.CancelledError:
                await self._kill()
                raise
            finally:
                if not self._is_kept:
                    await self._kill()

    async def close(self) -> None:
        """End the child. Later questions are refused."""
        self._is_closed = True
        async with self._lock:
            await self._kill()

    async def _exchange(self, question: bytes) -> dict[str, Any]:
        """Send one question to the child and take its answer. Call under the lock."""
        for _ in range(2):
            process = await self._running_process()
            used_s = _processor_time_s(process)
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await _ask(process, question)
            except TimeoutError:
                is_slow = _processor_time_s(process) - used_s >= _AT_WORK * self._timeout_s
                await self._kill()
                logger.warning("%s killed: reason=timeout limit_s=%g", self._name, self._timeout_s)
                error = TookTooLongError if is_slow else RequestError
                raise error(f"the {self._name} took longer than {self._timeout_s:g} s") from None
            except (ConnectionError, asyncio.IncompleteReadError):
                await self._kill()
                logger.warning("%s process died: exit_code=%s", self._name, process.returncode)
        raise TookTooLongError(f"the {self._name} ended the process that works on it")

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
                answer = await _ask(process, _encoded(self._set_up))
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
    return _decoded(await process.stdout.readexactly(length))


def _processor_time_s(process: Process) -> float:
    """The CPU time of process; the system's uptime if that can't be read."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _encoded(value: dict[str, Any]) -> bytes:
    """As JSON; the fast writer refuses half surrogate pairs and very large integers."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return json.dumps(value).encode()


def _decoded(text: bytes) -> dict[str, Any]:
    try:
        value: dict[str, Any] = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = json.loads(text)
    return value
