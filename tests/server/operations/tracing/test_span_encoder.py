"""The wire format of spans, read by opentelemetry-proto's own messages."""

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from plugserve.server.operations.tracing.sequence_spans import SpanEvent, SpanPart
from plugserve.server.operations.tracing.span_encoder import FinishedSpan, SpanEncoder, TraceFacts
from tests.otlp_receiver import values_of

FACTS = TraceFacts(bytes(range(16)), b"\xff" * 8, "v=1", 5_000_000_000)
VALUES = {
    "text": "é" * 70,
    "cut": "x" * 9000,
    "empty": "",
    "broken": "a\ud800b",
    "yes": True,
    "no": False,
    "one": 1,
    "negative": -(2**63),
    "largest": 2**63 - 1,
    "too large": 2**64,
    "half": 0.5,
    "whole": 1.0,
    "list": ["a", "b" * 20_000],
    "numbers": [1, 2.5],
    "none": None,
}


@pytest.fixture
def encoder():
    return SpanEncoder({"service.name": "s", "process.pid": 7}, "plugserve", "1.2")


def spans_of(encoder, *spans):
    request = ExportTraceServiceRequest.FromString(encoder.encode(spans))
    (resource,) = request.resource_spans
    (scope,) = resource.scope_spans
    assert values_of(resource.resource.attributes) == {"service.name": "s", "process.pid": 7}
    assert (scope.scope.name, scope.scope.version) == ("plugserve", "1.2")
    return list(scope.spans)


def test_every_field_arrives(encoder):
    events = [SpanEvent("first", 1.5, {"kind": "swap"}), SpanEvent("second", 1.75, {})]
    part = SpanPart("n" * 200, 1.0, 2.0, VALUES, events)
    given = FinishedSpan(FACTS, part, 2**64 - 1, None, 2, ("500", "gone"))
    for span in spans_of(encoder, given, given):  # the second one's attributes are kept ones
        assert (span.trace_id, span.span_id, span.parent_span_id) == (bytes(range(16)), b"\xff" * 8, b"\xff" * 8)
        assert (span.trace_state, span.name, span.kind) == ("v=1", "n" * 200, 2)
        assert (span.start_time_unix_nano, span.end_time_unix_nano) == (6_000_000_000, 7_000_000_000)
        assert (span.status.code, span.status.message, span.flags) == (2, "gone", 0x301)
        assert [(event.name, event.time_unix_nano) for event in span.events] == [
            ("first", 6_500_000_000),
            ("second", 6_750_000_000),
        ]
        assert values_of(span.events[0].attributes) == {"kind": "swap"}
        values = values_of(span.attributes)
        assert values.pop("error.type") == "500"
        assert values.pop("cut") == "x" * 4096
        assert values.pop("broken") == "a?b"
        assert values.pop("too large") == str(2**64)
        assert values.pop("list") == ["a", "b" * 4096]
        assert values == {name: value for name, value in VALUES.items() if name in values}
        assert [type(values[name]) for name in ("yes", "one", "whole")] == [bool, int, float]


def test_span_of_this_process_has_it_as_a_parent_and_never_ends_before_it_begins(encoder):
    top = TraceFacts(bytes(range(16)), b"", "", 0)
    first, second = spans_of(
        encoder,
        FinishedSpan(top, SpanPart("top", 2.0, 1.0, {}), 1, None, 1, None),
        FinishedSpan(top, SpanPart("child", 2.0, 3.0, {}), 2, 1, 1, None),
    )
    assert (first.parent_span_id, first.flags, first.status.code) == (b"", 0x101, 0)
    assert first.start_time_unix_nano == first.end_time_unix_nano
    assert (second.parent_span_id, second.flags) == ((1).to_bytes(8, "big"), 0x101)


def test_attributes_that_never_repeat_are_not_kept_for_ever(encoder):
    for number in range(10_000):
        encoder.encode([FinishedSpan(FACTS, SpanPart("n", 0, 1, {"id": str(number)}), 1, None, 1, None)])
    assert len(encoder._kept) <= 4096
