"""A recorded request as its readers see it: times in order, what it used, how it ended, and why it was slow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from plugserve.core.flight.flight_records import ENDED, HAS_GRAMMAR, IS_POOLED, REQUEST
from plugserve.core.flight.slowness import RequestTimes, why_slow
from plugserve.core.wire.messages import (
    FINISH_ABORT,
    FINISH_BAD_GRAMMAR,
    FINISH_COMPLETE,
    FINISH_ERROR,
    FINISH_LENGTH,
    FINISH_NO_ADAPTER,
    FINISH_NONE,
    FINISH_REFUSED,
    FINISH_STOP,
)

FINISH_NAMES: Final = {
    FINISH_NONE: None,
    FINISH_STOP: "stop",
    FINISH_LENGTH: "length",
    FINISH_COMPLETE: "stop",
    FINISH_ABORT: "abort",
    FINISH_ERROR: "error",
    FINISH_REFUSED: "refused",
    FINISH_NO_ADAPTER: "no_adapter",
    FINISH_BAD_GRAMMAR: "bad_grammar",
}
_ANSWERED: Final = (FINISH_STOP, FINISH_LENGTH, FINISH_COMPLETE)


@dataclass(frozen=True, slots=True)
class RequestStory:
    """record holds the fields of flight_records.REQUEST. Of a request that has not ended: now_s, on the engine's clock,
    is when it is looked at, counted_s when its tokens were counted (Gauges.updated_s). unread_s as in RequestTimes."""

    record: Mapping[str, Any]
    now_s: float
    counted_s: float
    unread_s: float = 0.0

    @classmethod
    def of(cls, record: np.void, now_s: float, counted_s: float, unread_s: float = 0.0) -> RequestStory:
        """Of one of FlightLog.requests."""
        return cls(dict(zip(REQUEST.names, record.item(), strict=True)), now_s, counted_s, unread_s)

    def _number(self, name: str) -> int:
        number: int = self.record[name]
        return number

    def _time(self, name: str) -> float:
        seconds: float = self.record[name]
        return seconds

    def text(self, name: str) -> str:
        """A field of text."""
        text: bytes = self.record[name]
        return text.decode(errors="replace")

    @property
    def is_ended(self) -> bool:
        return self._number("state") == ENDED

    @property
    def state(self) -> str:
        """running, done, failed or aborted."""
        if not self.is_ended:
            return "running"
        finish = self._number("finish")
        return "done" if finish in _ANSWERED else "aborted" if finish == FINISH_ABORT else "failed"

    @property
    def finish_reason(self) -> str | None:
        return FINISH_NAMES.get(self._number("finish"), "error")

    @property
    def arrived_s(self) -> float:
        """In the server, on the engine's clock."""
        return self._time("arrival_s") - self._time("before_s")

    @property
    def end_s(self) -> float:
        return self._time("end_s") or self.now_s

    def _reached(self, name: str) -> float:
        """When it came so far, or when it ended before."""
        return self._time(name) or self.end_s

    @property
    def ttft_s(self) -> float | None:
        """From its arrival to its first token; None without one."""
        first_s = self._time("first_token_s")
        return first_s - self.arrived_s if first_s else None

    @property
    def total_s(self) -> float:
        return self.end_s - self.arrived_s

    @property
    def itl_s(self) -> float | None:
        """The mean time between its tokens; None with less than two."""
        first_s, count = self._time("first_token_s"), self._number("num_output_tokens")
        until_s = self.end_s if self.is_ended else self.counted_s
        return (until_s - first_s) / (count - 1) if first_s and count > 1 else None

    @property
    def times(self) -> RequestTimes:
        number = self._number
        arrival_s, ready_s = self._time("arrival_s"), self._reached("ready_s")
        entered_s, scheduled_s = self._reached("entered_s"), self._reached("scheduled_s")
        first_s = self._reached("first_token_s")
        has_grammar = bool(number("flags") & HAS_GRAMMAR)
        is_pooled = bool(number("flags") & IS_POOLED)
        load_wait_s = self._time("load_wait_s")
        return RequestTimes(
            load_wait_s=load_wait_s,
            server_s=max(0.0, self._time("before_s") - load_wait_s),
            grammar_s=ready_s - arrival_s if has_grammar else 0.0,
            adapter_s=entered_s - ready_s if self.text("adapter") else 0.0,
            queue_s=scheduled_s - entered_s,
            prefill_s=(self.end_s if is_pooled else first_s) - scheduled_s,
            decode_s=0.0 if is_pooled else max(0.0, self.end_s - first_s),
            token_s=self.itl_s or 0.0,
            unread_s=self.unread_s,
            num_prompt_tokens=number("num_prompt_tokens"),
            num_cached_tokens=number("num_cached_tokens"),
            num_output_tokens=number("num_output_tokens"),
            num_preemptions=number("num_preemptions"),
            num_ahead=number("num_ahead"),
            num_beside=number("num_beside"),
            num_no_blocks=number("num_no_blocks"),
            num_no_rows=number("num_no_rows"),
            adapter=self.text("adapter"),
        )

    def as_dict(self, model: str, engine: int, epoch_offset_s: float) -> dict[str, Any]:
        """As GET /live/requests shows it."""
        times = self.times
        return {
            "id": self.text("id") or f"{self.text('worker')}:{self._number('worker_id')}",
            "model": model,
            "adapter": times.adapter or None,
            "engine": engine,
            "route": self.text("route") or None,
            "arrived": round(self.arrived_s + epoch_offset_s, 4),
            "before_ms": _ms(times.load_wait_s + times.server_s),
            "queue_ms": _ms(times.grammar_s + times.adapter_s + times.queue_s),
            "prefill_ms": _ms(times.prefill_s),
            "decode_ms": _ms(times.decode_s),
            "total_ms": _ms(self.total_s),
            "unread_ms": _ms(times.unread_s),
            "prompt_tokens": times.num_prompt_tokens,
            "cached_tokens": times.num_cached_tokens,
            "output_tokens": times.num_output_tokens,
            "preemptions": times.num_preemptions,
            "finish_reason": self.finish_reason,
            "state": self.state,
            "why": why_slow(times) if self.state != "failed" else None,
        }


def _ms(seconds: float) -> float:
    return round(1e3 * max(0.0, seconds), 1)
