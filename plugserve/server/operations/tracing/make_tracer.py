"""The tracer of a process. Without a destination opentelemetry is not imported."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from plugserve.core.settings.settings import Settings
from plugserve.server.operations.tracing.destination import destination
from plugserve.server.operations.tracing.tracer import NullTracer, Tracer

logger = logging.getLogger(__name__)

_DETAILED: Final = frozenset({"worker", "all"})


def announce_destination(settings: Settings, environment: Mapping[str, str]) -> None:
    """Log where a server's processes send spans, if anywhere. Raises ConfigError as make_tracer."""
    to = destination(settings.otlp_traces_endpoint, environment)
    if to is not None:
        logger.info("spans are sent to %s over %s", to.shown, to.protocol)


def make_tracer(settings: Settings, environment: Mapping[str, str], *, part: str = "") -> Tracer:
    """part names the process among those of a server. Raises ConfigError for a destination that can't be used."""
    to = destination(settings.otlp_traces_endpoint, environment)
    if to is None:
        return NullTracer()
    from plugserve.server.operations.tracing.otlp_tracer import OtlpTracer

    is_detailed = not _DETAILED.isdisjoint(settings.collect_detailed_traces)
    return OtlpTracer(to, part=part, baggage=settings.trace_baggage, is_detailed=is_detailed)
