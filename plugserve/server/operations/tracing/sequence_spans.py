"""The spans of a sequence in its engine: queue, prefill and decode, with what happened to it as events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from plugserve.core.wire.sequence_times import Preemption, SequenceTimes
from plugserve.server.operations.tracing.tracer import Attributes, SequenceSpan


class SpanEvent(NamedTuple):
    name: str
    at_s: float
    attributes: Attributes


class SpanPart(NamedTuple):
    """A span without its ids."""

    name: str
    started_s: float
    ended_s: float
    attributes: Attributes
    events: Sequence[SpanEvent] = ()


def sequence_parts(sequence: SequenceSpan, ended_s: float, index: int | None) -> list[SpanPart]:
    """ended_s is when its request ended, index its number where the request has several."""
    shared: dict[str, Any] = {} if index is None else {"plugserve.choice.index": index}
    if sequence.times is not None:
        return _timed(sequence, sequence.times, shared)
    if sequence.first_token_s is None:  # not known whether it was ever scheduled
        return [SpanPart("engine", sequence.sent_s, ended_s, shared)]
    scheduled_s = min(sequence.sent_s + sequence.queue_s, sequence.first_token_s)
    times = SequenceTimes(sequence.sent_s, scheduled_s, sequence.first_token_s, ended_s)
    return _timed(sequence, times, shared)


def _timed(sequence: SequenceSpan, times: SequenceTimes, shared: dict[str, Any]) -> list[SpanPart]:
    if times.scheduled_s is None:
        return [SpanPart("queue", times.arrived_s, times.ended_s, shared)]
    first_s = times.first_token_s
    prefill_end_s = times.ended_s if first_s is None else first_s
    early = [one for one in times.preemptions if one.at_s < prefill_end_s]
    prefill = {
        **shared,
        "plugserve.prompt_tokens": sequence.num_prompt_tokens,
        "plugserve.cached_tokens": sequence.num_cached_tokens,
    }
    parts = [
        SpanPart("queue", times.arrived_s, times.scheduled_s, shared),
        SpanPart("prefill", times.scheduled_s, prefill_end_s, prefill, _events(early)),
    ]
    if first_s is not None and sequence.num_generated_tokens:
        late = [one for one in times.preemptions if one.at_s >= prefill_end_s]
        decode = {
            **shared,
            "plugserve.generated_tokens": sequence.num_generated_tokens,
            "plugserve.preemptions": len(times.preemptions) or None,
        }
        events = [SpanEvent("first token", first_s, {}), *_events(late)]
        parts.append(SpanPart("decode", first_s, times.ended_s, decode, events))
    return parts


def _events(preemptions: Sequence[Preemption]) -> list[SpanEvent]:
    events: list[SpanEvent] = []
    for one in preemptions:
        kept = "swap" if one.is_swapped else "recompute"
        events.append(SpanEvent("preempted", one.at_s, {"plugserve.preemption.kind": kept}))
        if one.resumed_s is not None:
            events.append(SpanEvent("resumed", one.resumed_s, {}))
    return events
