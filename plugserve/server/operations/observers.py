"""Interfaces of tracing and trace recording, with null objects for when they are off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol


class RequestSpan(Protocol):
    """The span of one request. finish must be called exactly once; it may be called with an error."""

    def set(self, attributes: Mapping[str, Any]) -> None:
        """Add attributes; None values are left out."""

    def finish(self, attributes: Mapping[str, Any], error: BaseException | None = None) -> None:
        """Add attributes and end the span, as failed when error is given."""


class Tracer(Protocol):
    def start(self, operation: str, model: str, headers: Mapping[str, str]) -> RequestSpan:
        """Begin a request's span; operation is the GenAI name ("chat", "text_completion"), headers may carry W3C
        trace context."""

    def shutdown(self) -> None:
        """Send the spans that wait; blocks for about a second at most."""


class _NullSpan:
    def set(self, attributes: Mapping[str, Any]) -> None: ...

    def finish(self, attributes: Mapping[str, Any], error: BaseException | None = None) -> None: ...


class NullTracer:
    """Tracing is off."""

    _span: Final = _NullSpan()

    def start(self, operation: str, model: str, headers: Mapping[str, str]) -> RequestSpan:
        return self._span

    def shutdown(self) -> None: ...


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
