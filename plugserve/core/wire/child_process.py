"""Child processes of the supervisor exit when it does."""

from __future__ import annotations

import os
import signal
import sys
import threading


def die_with_parent() -> None:
    """Exit at once when the supervisor is gone: its end of this process's standard input is closed then.

    Ctrl-C and the end of a terminal reach the whole process group; the supervisor acts on them, and hands SIGHUP to the
    workers, which set a handler of their own.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    threading.Thread(target=_exit_at_eof, name="parent-watch", daemon=True).start()


def _exit_at_eof() -> None:
    descriptor = sys.stdin.fileno()
    while os.read(descriptor, 4096):
        pass
    os._exit(1)
