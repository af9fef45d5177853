"""A flight recorder's file as a trace, for `plugserve simulate`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from plugserve.core.flight.flight_log import FlightLog, Records
from plugserve.core.flight.flight_records import IS_POOLED, MAGIC, PREFIX_BLOCKS
from plugserve.core.flight.request_story import RequestStory
from plugserve.core.wire.trace_file import VERSION, Trace, TraceFacts, TraceRequest


def is_flight(path: Path) -> bool:
    """The file begins as a flight recorder's. Raises OSError."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def trace_of(log: FlightLog) -> Trace:
    """Its requests and steps. Those that were refused are left out; of a prompt's beginnings the longest that another
    one had too is kept."""
    facts, records, steps = log.facts, log.requests(), log.steps()
    records = records[records["scheduled_s"] > 0]
    first_s = float(records["arrival_s"].min()) if len(records) else 0.0
    shared = Counter(int(name) for name in records["prefix"].ravel())
    return Trace(
        TraceFacts(
            plugserve_trace=VERSION,
            model=facts.model,
            scheduler=facts.scheduler,
            block_size=facts.block_size or None,
            num_blocks=facts.num_blocks or None,
            max_num_seqs=facts.max_num_seqs or None,
            max_num_batched_tokens=facts.max_num_batched_tokens or None,
            max_model_len=facts.max_model_len or None,
        ),
        [_request(record, first_s, shared, facts.block_size) for record in records],
        _steps(steps),
    )


def _request(record: np.void, first_s: float, shared: Counter[int], block_size: int) -> TraceRequest:
    story = RequestStory.of(record, float(record["end_s"]), float(record["end_s"]))
    names = [int(name) for name in record["prefix"]]
    longest = max((i for i, name in enumerate(names) if name and shared[name] > 1), default=None)
    first_token_s, arrival_s = float(record["first_token_s"]), float(record["arrival_s"])
    num_output = 0 if record["flags"] & IS_POOLED else int(record["num_output_tokens"])
    return TraceRequest(
        arrival_s=arrival_s - first_s,
        prompt_tokens=int(record["num_prompt_tokens"]),
        output_tokens=num_output,
        max_tokens=max(int(record["max_tokens"]), num_output),
        priority=int(record["priority"]),
        prefix_group="" if longest is None else str(names[longest]),
        prefix_tokens=0 if longest is None else PREFIX_BLOCKS[longest] * block_size,
        ttft_s=first_token_s - arrival_s if first_token_s else None,
        total_s=story.end_s - arrival_s if story.is_ended else None,
        finish=story.finish_reason or "",
    )


def _steps(steps: Records) -> list[tuple[int, int, int, float]]:
    columns = [steps[name].tolist() for name in ("num_prompt_tokens", "num_decoding", "num_pairs")]
    return list(zip(*columns, (1e3 * steps["duration_s"]).tolist(), strict=True))
