"""A flight recorder's file in words (`plugserve replay FILE --show`)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import numpy as np

from plugserve.core.flight.flight_log import FlightLog
from plugserve.core.flight.request_story import RequestStory
from plugserve.core.flight.slowness import why_slow

_LAST_STEPS: Final = 10


def timeline(log: FlightLog, last: int | None) -> Iterator[str]:
    """Lines: the engine, its last requests in order of arrival (None: all that are kept), and its last steps."""
    gauges, requests, steps = log.gauges(), log.requests(), log.steps()
    shown = requests[-last:] if last is not None else requests
    ends = [gauges.updated_s, *(float(part.max()) for part in (steps["end_s"], requests["arrival_s"]) if len(part))]
    end_s, offset_s = max(ends), gauges.epoch_offset_s
    facts = log.facts
    how = "stopped in order" if gauges.is_over else "the file ends"
    yield f"engine of {facts.model} (plugserve {facts.version}, {facts.device} {facts.dtype}, pid {facts.pid})"
    yield f"started {_clock(facts.started_s)}, {how} {_clock(end_s + offset_s)}"
    num_alive = int((requests["state"] == 1).sum())
    yield (
        f"{gauges.num_requests or len(requests)} requests, {len(requests)} kept, {num_alive} not ended; "
        f"{int(steps[-1]['serial']) if len(steps) else 0} steps, {len(steps)} kept"
    )
    yield ""
    for record in shown:
        yield from _request_lines(RequestStory.of(record, end_s, gauges.updated_s), offset_s, end_s)
    if len(steps):
        yield ""
        yield f"the last steps of {len(steps)}:"
        for step in steps[-_LAST_STEPS:]:
            yield _step_line(step, offset_s)


def _request_lines(story: RequestStory, offset_s: float, end_s: float) -> Iterator[str]:
    record, times = story.record, story.times
    name = story.text("id") or f"{story.text('worker')}:{record['worker_id']}"
    route = f" {story.text('route')}" if story.text("route") else ""
    adapter = f" adapter {times.adapter}" if times.adapter else ""
    yield f"{_clock(story.arrived_s + offset_s)} request {record['ordinal']} {name}{route}{adapter}"
    parts = [f"{times.num_prompt_tokens} prompt tokens"]
    if times.num_cached_tokens:
        parts.append(f"{times.num_cached_tokens} of them cached")
    parts.append(f"{times.num_output_tokens} generated")
    if times.num_preemptions:
        parts.append(f"preempted {times.num_preemptions} times")
    yield f"    {', '.join(parts)}; {_ending(story, end_s)}"
    yield f"    {_parts(story)}"
    why = why_slow(times)
    if why and story.state != "failed":
        yield f"    {why}"


def _ending(story: RequestStory, end_s: float) -> str:
    if story.is_ended:
        return f"{story.state} ({story.finish_reason}) after {_s(story.total_s)}"
    return f"had not ended {_s(end_s - story.arrived_s)} later, when the file ends"


def _parts(story: RequestStory) -> str:
    """Its time, part by part, as far as it came."""
    record, times = story.record, story.times
    before_s = times.load_wait_s + times.server_s
    parts = [f"in the server {_s(before_s)}"] if before_s else []
    waits = (("grammar", times.grammar_s), ("adapter", times.adapter_s), ("queue", times.queue_s))
    parts += [f"{name} {_s(seconds)}" for name, seconds in waits if seconds >= 1e-4 or name == "queue"]
    if record["scheduled_s"]:
        parts.append(f"prompt {_s(times.prefill_s)} (from step {record['first_step']})")
    if record["first_token_s"]:
        each = f", {_s(story.itl_s)} a token" if story.itl_s is not None else ""
        parts.append(f"answer {_s(times.decode_s)}{each}")
    return ", ".join(parts)


def _step_line(step: np.void, offset_s: float) -> str:
    longest = f", {step['longest_chunk']} of request {step['longest_chunk_of']}" if step["longest_chunk"] else ""
    prompt = f"{step['num_prompt_tokens']} prompt tokens{longest}; " if step["num_prompt_tokens"] else ""
    drafts = f"{step['num_draft_tokens']} drafts; " if step["num_draft_tokens"] else ""
    preempted = f"{step['num_preempted']} preempted; " if step["num_preempted"] else ""
    return (
        f"{_clock(float(step['end_s']) + offset_s)} step {step['step_id']}: {_s(float(step['duration_s']))}, "
        f"{step['num_rows']} requests, {prompt}{step['num_decoding']} decoding; {drafts}{preempted}"
        f"{step['num_running']} run, {step['num_waiting']} wait, {step['num_free_blocks']} blocks free"
    )


def _clock(epoch_s: float) -> str:
    whole = int(epoch_s)
    return f"{time.strftime('%H:%M:%S', time.localtime(whole))}.{int(1e3 * (epoch_s - whole)):03d}"


def _s(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"
