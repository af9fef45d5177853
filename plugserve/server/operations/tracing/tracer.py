"""Interfaces of tracing, with null objects for when it is off.

A RequestTrace collects what happened while a request is served; its spans are made and queued when it is over. Times
are on time.perf_counter's clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from plugserve.core.plugin_system.plugin_guard import CallListener
from plugserve.core.wire.sequence_times import SequenceTimes

Attributes = Mapping[str, Any]
"""By name; those that are None are left out."""


@dataclass(slots=True)
class SequenceSpan:
    """A sequence at its end. times are the engine's; without them (it was aborted, or its engine died) sent_s, queue_s
    and first_token_s are the server's own."""

    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    times: SequenceTimes | None
    sent_s: float
    queue_s: float = 0.0
    first_token_s: float | None = None


@dataclass(slots=True)
class Step:
    """Something finished that a request spent time on: a hook, waiting for a model, making a prompt. is_client: it
    called another server, and id is its span's."""

    name: str
    started_s: float
    ended_s: float
    attributes: Attributes
    in_generation: bool = False
    is_client: bool = False
    error: str = ""
    id: int = 0


class GenerationSpan(Protocol):
    """The span of one request to a model. finish is called exactly once."""

    is_recording: bool

    def set(self, attributes: Attributes) -> None: ...

    def finish(
        self, attributes: Attributes, sequences: Sequence[SequenceSpan] = (), error: BaseException | None = None
    ) -> None:
        """End the span, as failed when error is given."""


class RequestTrace(Protocol):
    """The trace of one request. trace_id has 32 hexadecimal digits, "" while tracing is off; is_recording is False
    where the request isn't sampled."""

    is_recording: bool

    @property
    def trace_id(self) -> str: ...

    def enter(self) -> object:
        """The running task serves this request from now on; returns what leave takes."""

    def leave(self, token: Any) -> None: ...

    def generation(self, operation: str, model: str) -> GenerationSpan:
        """Begin the span of a request to model; operation is the GenAI convention's ("chat", "text_completion")."""

    def step(self, name: str, started_s: float, ended_s: float, attributes: Attributes | None = None) -> None:
        """Add a child span of something finished, unless it was shorter than what is traced."""

    def call(self) -> ClientCall:
        """Begin a call of another server."""

    def end_http(self, name: str, attributes: Attributes, error: str = "") -> None:
        """The answer is complete or broken off; error is the convention's error.type, "" for none."""

    def finish(self) -> None:
        """Nothing more is added: send the spans."""


class ClientCall(Protocol):
    """A call of another server. fields are the header fields that it takes along."""

    fields: Sequence[tuple[str, str]]

    def finish(self, name: str, attributes: Attributes, error: str = "") -> None: ...


@dataclass(slots=True)
class Work:
    """A tree of spans without a request: a model that is loaded or unloaded."""

    name: str
    started_s: float
    ended_s: float
    attributes: Attributes = field(default_factory=dict)
    children: list[Work] = field(default_factory=list)
    error: str = ""


class Tracer(Protocol):
    def begin(self, headers: Mapping[str, str], path: str = "") -> RequestTrace:
        """The trace of a request: its caller's, or a new one. path is that of an HTTP request, "" for others."""

    def watching(self, listener: CallListener) -> CallListener:
        """A listener of a PluginGuard that passes calls on to listener, and adds them to the trace of the request that
        they were made for."""

    def record(self, work: Work) -> None:
        """Send a tree of spans as a trace of its own."""

    def shutdown(self) -> None:
        """Send the spans that wait; blocks for half a second at most, and gives those up that aren't sent by then."""


class _NullSpan:
    is_recording = False

    def set(self, attributes: Attributes) -> None: ...

    def finish(
        self, attributes: Attributes, sequences: Sequence[SequenceSpan] = (), error: BaseException | None = None
    ) -> None: ...


class _NullCall:
    fields: Sequence[tuple[str, str]] = ()

    def finish(self, name: str, attributes: Attributes, error: str = "") -> None: ...


class _NullTrace:
    is_recording = False
    trace_id = ""
    _span: Final = _NullSpan()
    _call: Final = _NullCall()

    def enter(self) -> object:
        return None

    def leave(self, token: Any) -> None: ...

    def generation(self, operation: str, model: str) -> GenerationSpan:
        return self._span

    def step(self, name: str, started_s: float, ended_s: float, attributes: Attributes | None = None) -> None: ...

    def call(self) -> ClientCall:
        return self._call

    def end_http(self, name: str, attributes: Attributes, error: str = "") -> None: ...

    def finish(self) -> None: ...


NULL_TRACE: Final = _NullTrace()


class NullTracer:
    """Tracing is off."""

    def begin(self, headers: Mapping[str, str], path: str = "") -> RequestTrace:
        return NULL_TRACE

    def watching(self, listener: CallListener) -> CallListener:
        return listener

    def record(self, work: Work) -> None: ...

    def shutdown(self) -> None: ...
