"""The main loop of a sandbox's child process: limited memory, exit with the parent, length-prefixed JSON on stdin and
stdout.

Standard library only. The first message sets the work up, each later one is a question; the process exits when stdin
closes, even during an answer; an alarm ends it when Python code can't react.
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any, BinaryIO, Final

MEMORY_BYTES: Final = 1 << 30
ALARM_S: Final = 15  # longer than any limit of the parent: only an orphan reaches it
LENGTH: Final = struct.Struct("<I")

Work = Callable[[dict[str, Any], int], dict[str, Any]]
"""(question, its size in bytes) -> answer."""


def serve(
    set_up: Callable[[dict[str, Any]], Work],
    reason: Callable[[Exception], str],
    *,
    name: str,
    alarm_s: int = ALARM_S,
) -> None:
    """Answer until the parent is gone. reason gives the line that a client reads for an exception of the work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    _leave_with_parent(stdin.fileno())
    _limit_memory(name)
    first = _read_frame(stdin)
    if first is None:
        return
    works: list[Work] = []

    def start() -> dict[str, Any]:
        works.append(set_up(json.loads(first)))
        return {"text": ""}

    _write_frame(stdout, _answer(start, reason, alarm_s))
    while works and (frame := _read_frame(stdin)) is not None:

        def work(frame: bytes = frame) -> dict[str, Any]:
            return works[0](json.loads(frame), len(frame))

        _write_frame(stdout, _answer(work, reason, alarm_s))


def _answer(work: Callable[[], dict[str, Any]], reason: Callable[[Exception], str], alarm_s: int) -> dict[str, Any]:
    """The result of work, or {"error": reason}. The alarm ends the process if work takes longer than any limit of the
    parent."""
    signal.alarm(alarm_s)
    try:
        return work()
    except Exception as error:  # any exception of untrusted work is the answer
        return {"error": reason(error)}
    finally:
        signal.alarm(0)


def _read_frame(stream: BinaryIO) -> bytes | None:
    """The next message; None when the parent is gone."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    body = stream.read(length)
    return body if len(body) == length else None


def _write_frame(stream: BinaryIO, answer: dict[str, Any]) -> None:
    body = json.dumps(answer).encode()
    stream.write(LENGTH.pack(len(body)) + body)
    stream.flush()


def _limit_memory(name: str) -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError) as error:  # macOS refuses it; the time limit works everywhere
        print(f"{name} process: memory is not limited here ({error})", file=sys.stderr)


def _leave_with_parent(fd: int) -> None:
    """End the process as soon as the other end of fd closes, even during work."""

    def watch() -> None:
        poller = select.poll()
        poller.register(fd, 0)  # POLLHUP is always reported
        poller.poll()
        os._exit(0)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
