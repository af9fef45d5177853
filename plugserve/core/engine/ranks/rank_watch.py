"""Watches the heartbeats of the ranks above 0: names a rank that is silent, and ends the group after a limit."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from plugserve.core.contracts.executor import OnEnd, RankEnd
from plugserve.core.engine.ranks.rank_heart import LOADING, PERIOD_S, WAITING, Beat
from plugserve.core.wire.heartbeats import NEVER_S, HangLimits, Pulse

log = logging.getLogger(__name__)

_decoder: Final = msgspec.json.Decoder(Beat)


@dataclass(slots=True)
class _Heard:
    beat: Beat
    at_s: float
    is_hung: bool = False


class RankWatch:
    """nodes are the nodes of all ranks. A rank that is silent for limits.silent_s is named in the log and in pulse,
    whence /health reads it; after limits.replace_s on_hang is called. The time until its first heartbeat is
    part of the engine's start."""

    def __init__(
        self,
        nodes: Sequence[str],
        limits: HangLimits,
        pulse: Pulse,
        on_hang: OnEnd,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nodes = nodes
        self._limits = limits
        self._pulse = pulse
        self._on_hang = on_hang
        self._clock = clock
        self._heard: dict[int, _Heard] = {}
        self._looked_s = clock()
        self._rank_0_was_late = False
        self._is_stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="rank-watch", daemon=True).start()

    def stop(self) -> None:
        self._is_stopped.set()

    def note(self, rank: int, message: bytes) -> None:
        """A heartbeat has come, on any thread."""
        heard = _Heard(_decoder.decode(message), self._clock())
        before = self._heard.get(rank)
        self._heard[rank] = heard
        if before is not None and before.is_hung:
            log.warning("%s responds again after %.1f s", self._title(rank), heard.at_s - before.at_s)
            self._pulse.note_rank(0, 0)

    def _run(self) -> None:
        while not self._is_stopped.wait(PERIOD_S):
            self.look()

    def look(self) -> None:
        """One round over all ranks."""
        now_s = self._clock()
        was_suspended = now_s - self._looked_s > 4 * PERIOD_S  # so may the others have been: give them a round
        self._looked_s = now_s
        if was_suspended:
            return
        for rank, heard in list(self._heard.items()):
            self._examine(rank, heard, now_s - heard.at_s)
        self._follow_rank_0()

    def _examine(self, rank: int, heard: _Heard, silence_s: float) -> None:
        limits = self._limits
        is_loading = heard.beat.doing == LOADING  # it may hold the interpreter for long
        if silence_s > (limits.start_s if is_loading else limits.silent_s) and not heard.is_hung:
            heard.is_hung = True
            then = "not replaced (--engine-hang-timeout 0)" if limits.replace_s == NEVER_S else (
                f"replaced after {limits.replace_s:.0f} s")  # fmt: skip
            log.error("%s hangs: no heartbeat for %.1f s, %s", self._title(rank), silence_s, then)
            self._pulse.note_rank(rank, heard.beat.pid)
        if heard.is_hung and silence_s > limits.replace_s:
            reason = f"{self._title(rank)} hung: no heartbeat for {silence_s:.1f} s; --engine-hang-timeout has passed"
            log.error("the ranks are ended and started again: %s", reason)
            self.stop()
            self._on_hang(rank, RankEnd(reason))

    def _follow_rank_0(self) -> None:
        """Once rank 0 is late, say what each rank does, since it may wait for one of them."""
        is_late = self._pulse.is_late
        if is_late and not self._rank_0_was_late:
            for rank, heard in self._heard.items():
                if heard.beat.doing != WAITING and not heard.is_hung:
                    beat = heard.beat
                    log.warning("%s is in %s for %.1f s: %s", self._title(rank), beat.doing, beat.for_s, beat.where)
        self._rank_0_was_late = is_late

    def _title(self, rank: int) -> str:
        return f"rank {rank} of {len(self._nodes)} (pid {self._heard[rank].beat.pid} on {self._nodes[rank]})"
