"""Writes finished spans as OTLP's protobuf, in the exporter's thread.

The SDK's own encoder makes a protobuf object of each attribute: 190 us a request. This one writes the wire format
(https://protobuf.dev/programming-guides/encoding/) and keeps attributes that repeat: 40 us.
Field numbers: opentelemetry/proto/trace/v1/trace.proto, common/v1/common.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.trace import SpanContext, TraceFlags

from plugserve.server.operations.tracing.sequence_spans import SpanPart

_VARINTS: Final = [bytes([n]) if n < 128 else bytes([n & 127 | 128, n >> 7]) for n in range(16384)]
_DOUBLE: Final = struct.Struct("<d").pack
_FIXED64: Final = struct.Struct("<Q").pack
_FIXED32: Final = struct.Struct("<I").pack
_LONGEST_TEXT: Final = 4096  # characters of an attribute
_LONGEST_KEPT: Final = 64  # characters of one that is kept
_MOST_KEPT: Final = 4096
_ERROR: Final = b"\x18\x02"  # status.code = STATUS_CODE_ERROR
_HAS_IS_REMOTE: Final = 0x100  # SpanFlags
_IS_REMOTE: Final = 0x200


@dataclass(frozen=True, slots=True)
class TraceFacts:
    """What the spans of one trace share. parent_id is the caller's span, b"" for none; offset_ns is added to
    time.perf_counter's time to have Unix time."""

    trace_id: bytes
    parent_id: bytes
    state: str
    offset_ns: int


class FinishedSpan:
    """A span to export. It has as much of the SDK's ReadableSpan as BatchSpanProcessor reads. kind is OTLP's."""

    __slots__ = ("error", "kind", "parent_id", "part", "span_id", "trace")
    context: Final = SpanContext(1, 1, False, TraceFlags(TraceFlags.SAMPLED))

    def __init__(
        self,
        trace: TraceFacts,
        part: SpanPart,
        span_id: int,
        parent_id: int | None,
        kind: int,
        error: tuple[str, str] | None,
    ) -> None:
        self.trace = trace
        self.part = part
        self.span_id = span_id
        self.parent_id = parent_id
        self.kind = kind
        self.error = error


class SpanEncoder:
    """Spans of one resource and one instrumentation scope. Used from the exporter's thread."""

    def __init__(self, resource: Mapping[str, Any], scope_name: str, scope_version: str) -> None:
        self._kept: dict[tuple[str, Any, type], bytes] = {}
        self._doubles: dict[str, bytes] = {}
        attributes = b"".join(_sized(b"\x0a", _key_value(name, value)) for name, value in resource.items())
        self._resource = _sized(b"\x0a", attributes)
        self._scope = _sized(b"\x0a", _text(b"\x0a", scope_name) + _text(b"\x12", scope_version))

    def encode(self, spans: Iterable[FinishedSpan]) -> bytes:
        """An ExportTraceServiceRequest."""
        scope_spans = self._scope + b"".join([self._span(span) for span in spans])
        return _sized(b"\x0a", self._resource + _sized(b"\x12", scope_spans))

    def _span(self, span: FinishedSpan) -> bytes:
        trace, part = span.trace, span.part
        flags = 1 | _HAS_IS_REMOTE
        parent_id = trace.parent_id
        if span.parent_id is not None:
            parent_id = span.parent_id.to_bytes(8, "big")
        elif parent_id:
            flags |= _IS_REMOTE
        started_ns = trace.offset_ns + int(part.started_s * 1e9)
        ended_ns = max(started_ns, trace.offset_ns + int(part.ended_s * 1e9))
        pieces = [
            b"\x0a\x10" + trace.trace_id + b"\x12\x08" + span.span_id.to_bytes(8, "big"),
            _text(b"\x1a", trace.state) if trace.state else b"",
            b"\x22\x08" + parent_id if parent_id else b"",
            _text(b"\x2a", part.name),
            b"\x30" + _VARINTS[span.kind] + b"\x39" + _FIXED64(started_ns) + b"\x41" + _FIXED64(ended_ns),
            self._attributes(b"\x4a", part.attributes),
        ]
        for event in part.events:
            at_ns = trace.offset_ns + int(event.at_s * 1e9)
            body = b"\x09" + _FIXED64(at_ns) + _text(b"\x12", event.name)
            pieces.append(_sized(b"\x5a", body + self._attributes(b"\x1a", event.attributes)))
        if span.error is not None:
            kind, message = span.error
            pieces.append(b"\x4a" + self._attribute("error.type", kind))
            pieces.append(_sized(b"\x7a", (_text(b"\x12", message) if message else b"") + _ERROR))
        pieces.append(b"\x85\x01" + _FIXED32(flags))
        return _sized(b"\x12", b"".join(pieces))

    def _attributes(self, tag: bytes, attributes: Mapping[str, Any]) -> bytes:
        one = self._attribute
        return b"".join([tag + one(name, value) for name, value in attributes.items() if value is not None])

    def _attribute(self, name: str, value: Any) -> bytes:
        """A KeyValue with its length before it."""
        kind = type(value)
        if kind is float:
            head = self._doubles.get(name)
            if head is None:
                key = _text(b"\x0a", name)
                head = self._doubles[name] = _varint(len(key) + 11) + key + b"\x12\x09\x21"
            return head + _DOUBLE(value)
        if kind is list or (kind is str and len(value) > _LONGEST_KEPT):
            return _sized(b"", _key_value(name, value))
        kept = self._kept.get((name, value, kind))
        if kept is None:
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            kept = self._kept[name, value, kind] = _sized(b"", _key_value(name, value))
        return kept


def _key_value(name: str, value: Any) -> bytes:
    return _text(b"\x0a", name) + _sized(b"\x12", _any(value))


def _any(value: Any) -> bytes:
    """An AnyValue. A number of more than 64 bits becomes a text."""
    if isinstance(value, bool):
        return b"\x10" + _VARINTS[value]
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return b"\x18" + _varint(value & (2**64 - 1))
    if isinstance(value, float):
        return b"\x21" + _DOUBLE(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _sized(b"\x2a", b"".join(_sized(b"\x0a", _any(one)) for one in value))
    return _text(b"\x0a", str(value))


def _text(tag: bytes, text: str) -> bytes:
    """A string field. What is no valid Unicode is replaced: it would make collectors refuse the whole batch."""
    return _sized(tag, text[:_LONGEST_TEXT].encode("utf-8", "replace"))


def _sized(tag: bytes, data: bytes) -> bytes:
    size = len(data)
    return tag + (_VARINTS[size] if size < len(_VARINTS) else _varint(size)) + data


def _varint(number: int) -> bytes:
    if number < len(_VARINTS):
        return _VARINTS[number]
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    return bytes(digits)
