"""The process of a rank that mp starts: its door and its job come by standard input. It ends when rank 0's process
does; its last line on standard output says why, as RankEnd."""

from __future__ import annotations

import ctypes
import signal
import sys
from importlib import import_module

import msgspec

from plugserve.core.wire.child_process import die_with_parent
from plugserve.core.wire.rank_channel import Door, RankChannelEnd

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Exit code: 0 after rank 0 has closed its runner, 2 for the user's fault, 1 for other failures."""
    door = msgspec.json.decode(sys.stdin.buffer.readline(), type=Door)
    job = sys.stdin.buffer.readline()
    die_with_parent()
    _be_killed_with_parent()
    link = RankChannelEnd(door)
    end = import_module("plugserve").run_rank(job, link)  # by its public name: plugins stand on the contracts
    if end is not None:
        sys.stdout.buffer.write(msgspec.json.encode(end) + b"\n")
        sys.stdout.buffer.flush()
        return 2 if end.is_user_error else 1
    link.close()
    return 0


def _be_killed_with_parent() -> None:
    """On Linux, also where this process is stopped or holds the interpreter."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
