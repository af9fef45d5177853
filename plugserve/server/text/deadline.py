"""Interrupts synchronous plugin code that takes too long, including loops and regular expressions. It uses a signal, so
it works in the main thread only; in other threads code runs without a limit. The signal handler is process-wide and
installed at the first use.
"""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Final, TypeVar

_AGAIN_S: Final = 0.05  # code that catches the interruption is interrupted again
_WAIT_FACTOR: Final = 4
_LEAST_S: Final = 1e-3  # zero would turn the alarm off
Result = TypeVar("Result")


class TookTooLong(Exception):
    """The code exceeded its limit and was interrupted."""


class _Interruption(BaseException):
    """Raised inside the interrupted code; not an Exception, so that `except Exception` doesn't catch it."""


class Deadline:
    """A time budget for code that is called repeatedly: call_s a call, total_s in all. It counts the thread's CPU time,
    so that a busy machine doesn't use it up; time asleep or waiting counts a quarter. The garbage collector is off
    meanwhile, because its time would count and it could be interrupted.
    """

    _running: Deadline | None = None
    _is_installed = False

    def __init__(self, call_s: float, total_s: float) -> None:
        self._call_s = call_s
        self._total_s = self._left_s = total_s
        self._limit_s = 0.0
        self._started_s = 0.0
        self._cpu_started_s = 0.0

    def run(self, work: Callable[[], Result]) -> Result:
        """Call work(). Raises TookTooLong."""
        collects = gc.isenabled()
        gc.disable()
        self._limit_s = max(_LEAST_S, min(self._call_s, self._left_s))
        self._started_s, self._cpu_started_s = time.perf_counter(), time.thread_time()
        try:
            if threading.current_thread() is threading.main_thread():
                return self._run_with_alarm(work)
            return work()
        except _Interruption:
            raise TookTooLong(f"it took longer than {self._limit_s:.2g} s") from None
        finally:
            self._left_s -= self._spent_s
            if collects:
                gc.enable()

    @property
    def used_s(self) -> float:
        """The part of total_s that all calls so far used."""
        return self._total_s - self._left_s

    @property
    def _spent_s(self) -> float:
        waited_s = (time.perf_counter() - self._started_s) / _WAIT_FACTOR
        return max(time.thread_time() - self._cpu_started_s, waited_s)

    @property
    def is_over(self) -> bool:
        """The signal handler: interrupt the code whose time is used up."""
        return self._spent_s >= self._limit_s

    def _run_with_alarm(self, work: Callable[[], Result]) -> Result:
        _install()
        try:
            try:
                Deadline._running = self
                signal.setitimer(signal.ITIMER_REAL, self._limit_s, _AGAIN_S)
                return work()
            finally:
                Deadline._running = None
                signal.setitimer(signal.ITIMER_REAL, 0)
        except _Interruption:  # it may have come while the alarm was being turned off
            Deadline._running = None
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise


def _install() -> None:
    if not Deadline._is_installed:
        signal.signal(signal.SIGALRM, _interrupt)
        Deadline._is_installed = True


def _interrupt(number: int, frame: FrameType | None) -> None:
    if Deadline._running is not None and Deadline._running.is_over:
        raise _Interruption
