"""Samples requests and exports their spans with OpenTelemetry's SDK, in batches from a thread of its own.

Spans are made whole when a request is over, not recorded while they run, and written by span_encoder. The SDK reads its
standard variables: resource, sampler, batches, headers, certificates, time limits.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Decision
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, TraceState, set_span_in_context

from plugserve import __version__
from plugserve.core.plugin_system.plugin_guard import CallListener
from plugserve.core.wire.trace_ids import TraceIds
from plugserve.server.operations.tracing.destination import GRPC, Destination
from plugserve.server.operations.tracing.export_log import ExportLog
from plugserve.server.operations.tracing.request_trace import (
    INTERNAL,
    RecordedTrace,
    UnsampledTrace,
    new_id,
    new_trace_id,
)
from plugserve.server.operations.tracing.sequence_spans import SpanPart
from plugserve.server.operations.tracing.span_encoder import FinishedSpan, SpanEncoder, TraceFacts
from plugserve.server.operations.tracing.trace_context import SAMPLED, TraceContext, read_baggage, read_context
from plugserve.server.operations.tracing.traced_calls import TracedCalls
from plugserve.server.operations.tracing.tracer import NULL_TRACE, Attributes, RequestTrace, Work

_ENCODE: Final = "encode_spans"
_LEAST_STEP_S: Final = 0.001
_NOT_TRACED: Final = frozenset({"/health", "/ready", "/ping", "/load", "/metrics", "/version"})
_FLUSH_S: Final = 0.5


class OtlpTracer:
    """part names the process in the resource ("worker-0"). baggage are the keys of baggage entries that become
    attributes, "*" for all. is_detailed: steps of a request get spans however short they are."""

    def __init__(
        self, to: Destination, *, part: str = "", baggage: Sequence[str] = (), is_detailed: bool = False
    ) -> None:
        ExportLog().install()
        provider = TracerProvider(resource=_resource(part), shutdown_on_exit=False)
        self._sampler = provider.sampler
        encoder = SpanEncoder(provider.resource.attributes, "plugserve", __version__)
        self._processor = BatchSpanProcessor(_exporter(to, encoder))
        self._baggage = frozenset(baggage)
        self._least_s = 0.0 if is_detailed else _LEAST_STEP_S

    def begin(self, headers: Mapping[str, str], path: str = "") -> RequestTrace:
        if path.rstrip("/") in _NOT_TRACED:
            return NULL_TRACE
        parent = read_context(headers.get("traceparent"), headers.get("tracestate") or "")
        trace_id = parent.trace_id if parent is not None else new_trace_id()
        state, is_sampled = self._decide(parent, trace_id)
        ids = TraceIds(f"{trace_id:032x}", f"{new_id():016x}", is_sampled)
        if not is_sampled:
            return UnsampledTrace(ids, NULL_TRACE.generation("", ""))
        output = _Output(self._processor, trace_id, parent, state)
        return RecordedTrace(output, ids, self._shared(headers), self._least_s)

    def _decide(self, parent: TraceContext | None, trace_id: int) -> tuple[str, bool]:
        """(tracestate, whether the trace is sampled)."""
        state = _state(parent.state) if parent is not None and parent.state else ""
        if self._sampler is DEFAULT_ON:  # the same without the SDK's objects
            return state, parent is None or bool(parent.flags & SAMPLED)
        context = Context()
        if parent is not None:
            flags, states = TraceFlags(parent.flags & SAMPLED), TraceState.from_header([state])
            caller = SpanContext(parent.trace_id, parent.span_id, True, flags, states)
            context = set_span_in_context(NonRecordingSpan(caller), context)
        result = self._sampler.should_sample(context, trace_id, "request", SpanKind.SERVER, None, None)
        state = result.trace_state.to_header() if result.trace_state else ""
        return state, result.decision is Decision.RECORD_AND_SAMPLE

    def _shared(self, headers: Mapping[str, str]) -> Attributes:
        field = headers.get("baggage") if self._baggage else None
        if not field:
            return {}
        entries = read_baggage(field)
        return entries if "*" in self._baggage else {key: entries[key] for key in self._baggage & entries.keys()}

    def watching(self, listener: CallListener) -> CallListener:
        return TracedCalls(listener)

    def record(self, work: Work) -> None:
        trace_id = new_trace_id()
        state, is_sampled = self._decide(None, trace_id)
        if is_sampled:
            _emit_work(_Output(self._processor, trace_id, None, state), work, None)

    def shutdown(self) -> None:
        flush = threading.Thread(target=self._processor.force_flush, name="last-spans", daemon=True)
        flush.start()
        flush.join(_FLUSH_S)


class _Output:
    """SpanOutput of one trace. parent is the caller's span."""

    def __init__(self, processor: BatchSpanProcessor, trace_id: int, parent: TraceContext | None, state: str) -> None:
        self._on_end: Any = processor.on_end
        self._trace = TraceFacts(
            trace_id.to_bytes(16, "big"),
            parent.span_id.to_bytes(8, "big") if parent is not None else b"",
            state,
            time.time_ns() - time.perf_counter_ns(),
        )

    def emit(
        self,
        part: SpanPart,
        *,
        span_id: int,
        parent_id: int | None,
        kind: int = INTERNAL,
        error: tuple[str, str] | None = None,
    ) -> None:
        self._on_end(FinishedSpan(self._trace, part, span_id, parent_id, kind, error))


def _emit_work(output: _Output, work: Work, parent_id: int | None) -> None:
    span_id = new_id()
    error = (work.error, "") if work.error else None
    part = SpanPart(work.name, work.started_s, work.ended_s, work.attributes)
    output.emit(part, span_id=span_id, parent_id=parent_id, error=error)
    for child in work.children:
        _emit_work(output, child, span_id)


@lru_cache(maxsize=256)
def _state(field: str) -> str:
    """A tracestate as the specification lets it be handed on: without members that are malformed."""
    return TraceState.from_header([field]).to_header()


def _resource(part: str) -> Resource:
    """The variables' attributes win over ours."""
    ours: dict[str, Any] = {"service.name": "plugserve", "service.version": __version__, "process.pid": os.getpid()}
    if part:
        ours["service.instance.id"] = part
    return Resource.create(ours).merge(OTELResourceDetector().detect())


def _exporter(to: Destination, encoder: SpanEncoder) -> SpanExporter:
    """The SDK's exporter, which writes our spans with encoder."""
    if to.protocol == GRPC:
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc

        _replace_encoder(grpc, encoder, _message)
        return grpc.OTLPSpanExporter(endpoint=to.url)
    from opentelemetry.exporter.otlp.proto.http import trace_exporter as http

    _replace_encoder(http, encoder, _Written)
    return http.OTLPSpanExporter(endpoint=to.url)


class _Written:
    """A message of which the exporter over HTTP takes the bytes alone."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def SerializeToString(self) -> bytes:
        return self._data

    SerializePartialToString = SerializeToString


def _message(data: bytes) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    request.ParseFromString(data)
    return request


def _replace_encoder(module: ModuleType, encoder: SpanEncoder, wrap: Callable[[bytes], Any]) -> None:
    """The exporters take what they send from their module's encode_spans, which there is no other way to choose. Spans
    of others (a plugin's own tracing) are still the SDK's to encode."""
    theirs: Callable[[Sequence[Any]], Any] = getattr(module, _ENCODE)

    def encode_spans(spans: Sequence[Any]) -> Any:
        if not spans or type(spans[0]) is not FinishedSpan:
            return theirs(spans)
        return wrap(encoder.encode(spans))

    setattr(module, _ENCODE, encode_spans)
