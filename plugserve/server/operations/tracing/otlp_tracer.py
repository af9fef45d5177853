"""Makes spans with OpenTelemetry's SDK, which exports them in batches from a thread of its own.

Spans are made whole when a request is over, as the SDK's ReadableSpan: this costs a tenth of recording them while they
run. The SDK reads its standard variables: resource, sampler, batches, headers, certificates, time limits.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from plugserve import __version__
from plugserve.core.plugin_system.plugin_guard import CallListener
from plugserve.core.wire.trace_ids import TraceIds
from plugserve.server.operations.tracing.destination import GRPC, Destination
from plugserve.server.operations.tracing.export_log import ExportLog
from plugserve.server.operations.tracing.request_trace import (
    CLIENT,
    INTERNAL,
    SERVER,
    RecordedTrace,
    UnsampledTrace,
    new_id,
    new_trace_id,
)
from plugserve.server.operations.tracing.sequence_spans import SpanPart
from plugserve.server.operations.tracing.trace_context import SAMPLED, TraceContext, read_baggage, read_context
from plugserve.server.operations.tracing.traced_calls import TracedCalls
from plugserve.server.operations.tracing.tracer import NULL_TRACE, Attributes, RequestTrace, Work

_KINDS: Final = {INTERNAL: SpanKind.INTERNAL, SERVER: SpanKind.SERVER, CLIENT: SpanKind.CLIENT}
_UNSET: Final = Status(StatusCode.UNSET)
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_LEAST_STEP_S: Final = 0.001
_NOT_TRACED: Final = frozenset({"/health", "/ready", "/ping", "/load", "/metrics", "/version"})
_FLUSH_S: Final = 0.5
_LONGEST_TEXT: Final = 4096  # characters of an attribute


class OtlpTracer:
    """part names the process in the resource ("worker-0"). baggage are the keys of baggage entries that become
    attributes, "*" for all. is_detailed: steps of a request get spans however short they are."""

    def __init__(
        self, to: Destination, *, part: str = "", baggage: Sequence[str] = (), is_detailed: bool = False
    ) -> None:
        ExportLog().install()
        provider = TracerProvider(resource=_resource(part), shutdown_on_exit=False)
        self._sampler = provider.sampler
        self._resource = provider.resource
        self._processor = BatchSpanProcessor(_exporter(to))
        self._baggage = frozenset(baggage)
        self._least_s = 0.0 if is_detailed else _LEAST_STEP_S

    def begin(self, headers: Mapping[str, str], path: str = "") -> RequestTrace:
        if path.rstrip("/") in _NOT_TRACED:
            return NULL_TRACE
        parent = read_context(headers.get("traceparent"), headers.get("tracestate") or "")
        trace_id = parent.trace_id if parent is not None else new_trace_id()
        remote = _remote(parent) if parent is not None else None
        state, is_sampled = self._decide(remote, trace_id)
        ids = TraceIds(f"{trace_id:032x}", f"{new_id():016x}", is_sampled)
        if not is_sampled:
            return UnsampledTrace(ids, NULL_TRACE.generation("", ""))
        return RecordedTrace(self._output(trace_id, remote, state), ids, self._shared(headers), self._least_s)

    def _decide(self, parent: SpanContext | None, trace_id: int) -> tuple[TraceState | None, bool]:
        context = Context() if parent is None else set_span_in_context(NonRecordingSpan(parent), Context())
        result = self._sampler.should_sample(context, trace_id, "request", SpanKind.SERVER, None, None)
        return result.trace_state, result.decision is Decision.RECORD_AND_SAMPLE

    def _shared(self, headers: Mapping[str, str]) -> Attributes:
        field = headers.get("baggage") if self._baggage else None
        if not field:
            return {}
        entries = read_baggage(field)
        return entries if "*" in self._baggage else {key: entries[key] for key in self._baggage & entries.keys()}

    def _output(self, trace_id: int, parent: SpanContext | None, state: TraceState | None) -> _Output:
        return _Output(self._processor, self._resource, trace_id, parent, state)

    def watching(self, listener: CallListener) -> CallListener:
        return TracedCalls(listener)

    def record(self, work: Work) -> None:
        trace_id = new_trace_id()
        state, is_sampled = self._decide(None, trace_id)
        if is_sampled:
            _emit_work(self._output(trace_id, None, state), work, None)

    def shutdown(self) -> None:
        flush = threading.Thread(target=self._processor.force_flush, name="last-spans", daemon=True)
        flush.start()
        flush.join(_FLUSH_S)


class _Output:
    """SpanOutput of one trace. parent is the caller's span."""

    def __init__(
        self,
        processor: BatchSpanProcessor,
        resource: Resource,
        trace_id: int,
        parent: SpanContext | None,
        state: TraceState | None,
    ) -> None:
        self._processor = processor
        self._resource = resource
        self._trace_id = trace_id
        self._parent = parent
        self._state = state
        self._offset_ns = time.time_ns() - time.perf_counter_ns()

    def emit(
        self,
        part: SpanPart,
        *,
        span_id: int,
        parent_id: int | None,
        kind: int = INTERNAL,
        error: tuple[str, str] | None = None,
    ) -> None:
        attributes = {name: sendable(value) for name, value in part.attributes.items() if value is not None}
        status = _UNSET
        if error is not None:
            attributes["error.type"] = error[0]
            status = Status(StatusCode.ERROR, sendable(error[1]) or None)
        started_ns = self._ns(part.started_s)
        span = ReadableSpan(
            sendable(part.name),
            context=self._context(span_id),
            parent=self._parent if parent_id is None else self._context(parent_id),
            resource=self._resource,
            attributes=attributes,
            events=[Event(event.name, event.attributes, self._ns(event.at_s)) for event in part.events],
            kind=_KINDS[kind],
            status=status,
            start_time=started_ns,
            end_time=max(started_ns, self._ns(part.ended_s)),
            instrumentation_scope=_SCOPE,
        )
        self._processor.on_end(span)

    def _context(self, span_id: int) -> SpanContext:
        return SpanContext(self._trace_id, span_id, False, _SAMPLED, self._state)

    def _ns(self, at_s: float) -> int:
        """Unix time of a moment on time.perf_counter's clock."""
        return self._offset_ns + int(at_s * 1e9)


def sendable(value: Any) -> Any:
    """value as OTLP takes it: a text that is not valid Unicode, or a number of more than 64 bits, would make the
    exporter drop the whole batch."""
    kind = type(value)
    if kind is str:
        text = value if len(value) <= _LONGEST_TEXT else value[:_LONGEST_TEXT]
        return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
    if kind is int:
        return value if -(2**63) <= value < 2**63 else str(value)
    if kind is list:
        return [sendable(one) for one in value]
    return value


_SCOPE: Final = InstrumentationScope("plugserve", __version__)


def _emit_work(output: _Output, work: Work, parent_id: int | None) -> None:
    span_id = new_id()
    error = (work.error, "") if work.error else None
    part = SpanPart(work.name, work.started_s, work.ended_s, work.attributes)
    output.emit(part, span_id=span_id, parent_id=parent_id, error=error)
    for child in work.children:
        _emit_work(output, child, span_id)


def _remote(parent: TraceContext) -> SpanContext:
    state = _state(parent.state) if parent.state else None
    return SpanContext(parent.trace_id, parent.span_id, True, TraceFlags(parent.flags & SAMPLED), state)


@lru_cache(maxsize=256)
def _state(field: str) -> TraceState:
    return TraceState.from_header([field])


def _resource(part: str) -> Resource:
    """The variables' attributes win over ours."""
    ours: dict[str, Any] = {"service.name": "plugserve", "service.version": __version__, "process.pid": os.getpid()}
    if part:
        ours["service.instance.id"] = part
    return Resource.create(ours).merge(OTELResourceDetector().detect())


def _exporter(to: Destination) -> SpanExporter:
    if to.protocol == GRPC:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(endpoint=to.url)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return HttpExporter(endpoint=to.url)
