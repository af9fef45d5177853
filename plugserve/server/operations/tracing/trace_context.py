"""W3C Trace Context (traceparent, tracestate) and Baggage, read from and written to header fields.

https://www.w3.org/TR/trace-context-2/ and https://www.w3.org/TR/baggage/
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

SAMPLED: Final = 1
_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MOST_STATE: Final = 2048  # characters
_MOST_BAGGAGE: Final = 8192  # characters
_MOST_ENTRIES: Final = 64


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A caller's span. state is its tracestate, as it came."""

    trace_id: int
    span_id: int
    flags: int
    state: str = ""


def read_context(traceparent: str | None, tracestate: str = "") -> TraceContext | None:
    """None without a valid traceparent; an invalid one starts a new trace, as the specification says."""
    found = _PARENT.fullmatch(traceparent.strip()) if traceparent else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    state = tracestate.strip() if len(tracestate) <= _MOST_STATE else ""
    return TraceContext(int(trace_id, 16), int(span_id, 16), int(flags, 16), state)


def traceparent(trace_id: int, span_id: int, *, is_sampled: bool) -> str:
    """The header field for what a span calls, and for its caller."""
    return f"00-{trace_id:032x}-{span_id:016x}-{'01' if is_sampled else '00'}"


def read_baggage(field: str) -> Mapping[str, str]:
    """The entries of a baggage field by key, without their properties; what is malformed or too long is left out."""
    entries: dict[str, str] = {}
    if len(field) > _MOST_BAGGAGE:
        return entries
    for entry in field.split(",")[:_MOST_ENTRIES]:
        key, equals, value = entry.partition(";")[0].partition("=")
        if equals and key.strip():
            entries[key.strip()] = unquote(value.strip())
    return entries
