"""What is collected of one request while it is served, and its spans once it is over."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Final, Protocol

from plugserve.core.wire.trace_ids import TRACE_IDS, TraceIds
from plugserve.server.operations.tracing.sequence_spans import SpanPart, sequence_parts
from plugserve.server.operations.tracing.trace_context import traceparent
from plugserve.server.operations.tracing.tracer import Attributes, ClientCall, GenerationSpan, SequenceSpan, Step

_MOST_SEQUENCES: Final = 8  # of a request with many answers that get spans
_MOST_STEPS: Final = 128

INTERNAL: Final = 1
SERVER: Final = 2
CLIENT: Final = 3
"""OTLP's kinds of spans."""


class SpanOutput(Protocol):
    """Makes spans of one trace, and queues them for export."""

    def emit(
        self,
        part: SpanPart,
        *,
        span_id: int,
        parent_id: int | None,
        kind: int = INTERNAL,
        error: tuple[str, str] | None = None,
    ) -> None:
        """error is the convention's error.type and a description; parent_id None: the parent is the caller's span, if
        the request brought one."""


class RecordedTrace:
    """A sampled request. output knows its trace id, its caller's span and the offset of the clocks. least_s: steps that
    took less get no span. shared are attributes of the spans of the request and of its generations."""

    is_recording = True

    def __init__(self, output: SpanOutput, ids: TraceIds, shared: Attributes, least_s: float) -> None:
        self._output = output
        self._ids = ids
        self._shared = shared
        self._least_s = least_s
        self._span_id = int(ids.span_id, 16)
        self._started_s = time.perf_counter()
        self._http: tuple[str, float, Attributes, str] | None = None
        self._generations: list[_Generation] = []
        self._steps: list[Step] = []
        self._is_finished = False

    @property
    def trace_id(self) -> str:
        return self._ids.trace_id

    def enter(self) -> object:
        return RECORDED.set(self), TRACE_IDS.set(self._ids)

    def leave(self, token: Any) -> None:
        recorded, ids = token
        RECORDED.reset(recorded)
        TRACE_IDS.reset(ids)

    def generation(self, operation: str, model: str) -> GenerationSpan:
        generation = _Generation(operation, model)
        self._generations.append(generation)
        return generation

    def step(self, name: str, started_s: float, ended_s: float, attributes: Attributes | None = None) -> None:
        if ended_s - started_s >= self._least_s:
            is_inside = bool(self._generations) and self._generations[-1].ended_s is None
            self._add(Step(name, started_s, ended_s, attributes or {}, in_generation=is_inside))

    def call(self) -> ClientCall:
        return _Call(self, self._ids.trace_id)

    def _add(self, step: Step) -> None:
        if len(self._steps) < _MOST_STEPS:
            self._steps.append(step)

    def end_http(self, name: str, attributes: Attributes, error: str = "") -> None:
        self._http = (name, time.perf_counter(), attributes, error)

    def finish(self) -> None:
        if self._is_finished:
            return
        self._is_finished = True
        inner_id = top_id = self._span_id
        if self._http is not None:
            name, ended_s, attributes, error = self._http
            part = SpanPart(name, self._started_s, ended_s, {**attributes, **self._shared})
            failure = (error, "") if error else None
            self._output.emit(part, span_id=top_id, parent_id=None, kind=SERVER, error=failure)
        for generation in self._generations:
            if self._http is not None:
                inner_id = new_id()
            self._emit_generation(generation, inner_id, top_id if self._http is not None else None)
        for step in self._steps:
            self._output.emit(
                SpanPart(step.name, step.started_s, step.ended_s, step.attributes),
                span_id=step.id or new_id(),
                parent_id=inner_id if step.in_generation else top_id,
                kind=CLIENT if step.is_client else INTERNAL,
                error=(step.error, "") if step.error else None,
            )

    def _emit_generation(self, generation: _Generation, id: int, parent_id: int | None) -> None:
        part = generation.part(self._shared)
        self._output.emit(part, span_id=id, parent_id=parent_id, error=generation.error)
        for number, sequence in enumerate(generation.sequences[:_MOST_SEQUENCES]):
            index = number if len(generation.sequences) > 1 else None
            for child in sequence_parts(sequence, part.ended_s, index):
                self._output.emit(child, span_id=new_id(), parent_id=id)


class UnsampledTrace:
    """A request whose trace the caller or the sampler leaves out: its id is logged and handed on, no span is made."""

    is_recording = False

    def __init__(self, ids: TraceIds, null_span: GenerationSpan) -> None:
        self._ids = ids
        self._null_span = null_span

    @property
    def trace_id(self) -> str:
        return self._ids.trace_id

    def enter(self) -> object:
        return TRACE_IDS.set(self._ids)

    def leave(self, token: Any) -> None:
        TRACE_IDS.reset(token)

    def generation(self, operation: str, model: str) -> GenerationSpan:
        return self._null_span

    def step(self, name: str, started_s: float, ended_s: float, attributes: Attributes | None = None) -> None: ...

    def call(self) -> ClientCall:
        parent = traceparent(int(self._ids.trace_id, 16), int(self._ids.span_id, 16), is_sampled=False)
        return _UnsampledCall((("traceparent", parent),))

    def end_http(self, name: str, attributes: Attributes, error: str = "") -> None: ...

    def finish(self) -> None: ...


class _Generation:
    """GenerationSpan of a sampled request."""

    is_recording = True

    def __init__(self, operation: str, model: str) -> None:
        self._operation = operation
        self._model = model
        self._attributes: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "plugserve",
            "gen_ai.request.model": model,
        }
        self._started_s = time.perf_counter()
        self.ended_s: float | None = None
        self.sequences: Sequence[SequenceSpan] = ()
        self.error: tuple[str, str] | None = None

    def set(self, attributes: Attributes) -> None:
        self._attributes |= attributes

    def finish(
        self, attributes: Attributes, sequences: Sequence[SequenceSpan] = (), error: BaseException | None = None
    ) -> None:
        self._attributes |= attributes
        self.ended_s = time.perf_counter()
        self.sequences = sequences
        if error is not None:
            self.error = (type(error).__name__, str(error))

    def part(self, shared: Attributes) -> SpanPart:
        ended_s = self.ended_s if self.ended_s is not None else time.perf_counter()
        name = f"{self._operation} {self._model}"
        return SpanPart(name, self._started_s, ended_s, {**self._attributes, **shared})


class _Call:
    """ClientCall of a sampled request."""

    def __init__(self, trace: RecordedTrace, trace_id: str) -> None:
        self._trace = trace
        self._id = new_id()
        self._started_s = time.perf_counter()
        self.fields: Sequence[tuple[str, str]] = (
            ("traceparent", traceparent(int(trace_id, 16), self._id, is_sampled=True)),
        )

    def finish(self, name: str, attributes: Attributes, error: str = "") -> None:
        self._trace._add(
            Step(name, self._started_s, time.perf_counter(), attributes, is_client=True, error=error, id=self._id)
        )


class _UnsampledCall:
    def __init__(self, fields: Sequence[tuple[str, str]]) -> None:
        self.fields = fields

    def finish(self, name: str, attributes: Attributes, error: str = "") -> None: ...


RECORDED: Final[ContextVar[RecordedTrace | None]] = ContextVar("plugserve_recorded_trace", default=None)
"""The sampled trace of the request that the running task serves."""


def new_id() -> int:
    """Of a span: 64 bits, not 0."""
    return random.getrandbits(64) or 1


def new_trace_id() -> int:
    return random.getrandbits(128) or 1
