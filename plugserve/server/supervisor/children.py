"""Child processes of the supervisor: start, watch, stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Sequence

_STABLE_S = 60.0
_LONGEST_PAUSE_S = 30.0


class Child:
    """One running child process. Its standard input is a pipe that closes when the supervisor dies."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(
        cls, module: str, arguments: Sequence[object], first_input: bytes, *, pass_fds: Sequence[int] = ()
    ) -> Child:
        """Run `python -m module arguments...` with this interpreter, as a fresh process (never a fork of this one).
        first_input is written to its standard input."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # the current folder must not shadow installed modules
            "-m",
            module,
            *map(str, arguments),
            stdin=asyncio.subprocess.PIPE,
            pass_fds=tuple(pass_fds),
        )
        assert process.stdin is not None
        process.stdin.write(first_input)
        with contextlib.suppress(ConnectionError):  # it has died; wait returns the exit code
            await process.stdin.drain()
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """The exit code; negative for the signal that ended it."""
        return await self._process.wait()

    def ask_to_reload(self) -> None:
        """Send SIGHUP."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """Kill it (SIGKILL), even if it is stopped or loops; wait returns soon afterwards."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def stop(self, patience_s: float) -> None:
        """Wait for it to exit, and kill it after the timeout. Returns when it is reaped."""
        try:
            await asyncio.wait_for(self._process.wait(), patience_s)
        except TimeoutError:
            self.kill()
            await self._process.wait()


class Backoff:
    """The delay before a restart: nothing after the first crash, then doubling up to 30 s; a process that
    lived for a minute resets it."""

    def __init__(self) -> None:
        self._num_crashes = 0
        self._started_s = time.monotonic()

    def note_start(self) -> None:
        self._started_s = time.monotonic()

    def next_pause_s(self) -> float:
        if time.monotonic() - self._started_s > _STABLE_S:
            self._num_crashes = 0
        self._num_crashes += 1
        return 0.0 if self._num_crashes == 1 else min(_LONGEST_PAUSE_S, 0.5 * 2 ** (self._num_crashes - 2))
