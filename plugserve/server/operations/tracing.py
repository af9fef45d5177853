"""One OpenTelemetry span a request, by the GenAI semantic conventions, sent over OTLP.

Without an endpoint opentelemetry is not imported.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from plugserve.server.operations.observers import NullTracer, RequestSpan, Tracer

if TYPE_CHECKING:
    from opentelemetry.trace import Span

logger = logging.getLogger(__name__)

_TRACES_PATH: Final = "/v1/traces"
_FLUSH_TIMEOUT_MS: Final = 1000


class OtlpTracer:
    """Sends spans in batches over OTLP/HTTP from a thread of the SDK."""

    def __init__(self, endpoint: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        name = os.environ.get("OTEL_SERVICE_NAME", "plugserve")
        self._provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("plugserve")
        self._propagator = TraceContextTextMapPropagator()

    def start(self, operation: str, model: str, headers: Mapping[str, str]) -> RequestSpan:
        from opentelemetry.trace import SpanKind

        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "plugserve",
            "gen_ai.request.model": model,
        }
        parent = self._propagator.extract(dict(headers))
        span = self._tracer.start_span(
            f"{operation} {model}", context=parent, kind=SpanKind.SERVER, attributes=attributes
        )
        return _OtlpSpan(span)

    def shutdown(self) -> None:
        self._provider.force_flush(_FLUSH_TIMEOUT_MS)


class _OtlpSpan:
    def __init__(self, span: Span) -> None:
        self._span = span

    def set(self, attributes: Mapping[str, Any]) -> None:
        for name, value in attributes.items():
            if value is not None:
                self._span.set_attribute(name, value)

    def finish(self, attributes: Mapping[str, Any], error: BaseException | None = None) -> None:
        from opentelemetry.trace import Status, StatusCode

        self.set(attributes)
        if error is not None:
            self._span.set_attribute("error.type", type(error).__name__)
            self._span.set_status(Status(StatusCode.ERROR, str(error)))
        self._span.end(time.time_ns())


def make_tracer(endpoint: str | None, environment: Mapping[str, str]) -> Tracer:
    """The tracer for --otlp-traces-endpoint, else for OpenTelemetry's own variables, else none."""
    url = traces_url(endpoint, environment)
    if url is None:
        return NullTracer()
    logger.info("spans are sent to %s", url)
    return OtlpTracer(url)


def traces_url(endpoint: str | None, environment: Mapping[str, str]) -> str | None:
    """The URL that spans are sent to. A setting without a path and the base variable get /v1/traces appended; the
    variable for traces is taken as it is, by the OpenTelemetry specification."""
    if endpoint:
        return endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + _TRACES_PATH
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if own := environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        return own
    if base := environment.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return base.rstrip("/") + _TRACES_PATH
    return None
