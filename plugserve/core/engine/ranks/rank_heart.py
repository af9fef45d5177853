"""A rank's heartbeat: twice a second it sends rank 0 what it does, from a thread of its own."""

from __future__ import annotations

import os
import sys
import threading
import time
from types import FrameType
from typing import Final

import msgspec

from plugserve.core.contracts.executor import RankLink
from plugserve.core.engine.ranks.rank_calls import NAMES

PERIOD_S: Final = 0.5
LOADING: Final = "loading"
WAITING: Final = "waiting"
_LONG_S: Final = 2.0
_NUM_FRAMES: Final = 3


class Beat(msgspec.Struct, frozen=True):
    """doing is LOADING, WAITING for a call, or the name of the call that the rank makes, for_s seconds by now. where
    are the innermost frames of a long one."""

    pid: int
    doing: str
    for_s: float
    where: str = ""


class RankHeart:
    """Beats once it is started, until the process ends. Made on the thread that makes the calls."""

    def __init__(self, link: RankLink) -> None:
        self._link = link
        self._thread_id = threading.get_ident()
        self._doing: tuple[str, float] = (LOADING, time.monotonic())

    def start(self) -> None:
        threading.Thread(target=self._run, name="rank-heart", daemon=True).start()

    def begin(self, kind: bytes) -> None:
        """A call begins."""
        self._doing = (NAMES[kind], time.monotonic())

    def end(self) -> None:
        """The rank waits for the next call."""
        self._doing = (WAITING, time.monotonic())

    def _run(self) -> None:
        while True:
            self._link.send(msgspec.json.encode(self.beat()))
            time.sleep(PERIOD_S)

    def beat(self) -> Beat:
        doing, since_s = self._doing
        for_s = time.monotonic() - since_s
        is_long = doing not in (WAITING, LOADING) and for_s > _LONG_S
        return Beat(os.getpid(), doing, for_s, _where(sys._current_frames().get(self._thread_id)) if is_long else "")


def _where(frame: FrameType | None) -> str:
    found: list[str] = []
    while frame is not None and len(found) < _NUM_FRAMES:
        file = "/".join(frame.f_code.co_filename.split("/")[-2:])
        found.append(f"{frame.f_code.co_name} ({file}:{frame.f_lineno})")
        frame = frame.f_back
    return " < ".join(found)
