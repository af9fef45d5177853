"""The interface of trace recording (--record-trace), with a null object for when it is off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class RecordedSequence:
    """One sequence at its end. sent_s, first_token_s and end_s are on time.perf_counter's clock; prompt are its token
    ids, num_tokens how many it generated."""

    model: str
    user: str
    priority: int
    prompt: Sequence[int]
    num_tokens: int
    max_tokens: int
    sent_s: float
    end_s: float
    first_token_s: float | None = None
    finish: str = ""


class TraceRecorder(Protocol):
    """Records finished sequences."""

    def note(self, sequences: Sequence[RecordedSequence]) -> None:
        """All sequences of one request, when it has ended. Never raises."""


class NullTraceRecorder:
    """Records nothing: --record-trace is not set."""

    def note(self, sequences: Sequence[RecordedSequence]) -> None: ...
