"""The requests of a flight recorder's file, ready to be sent again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.errors import ConfigError
from plugserve.core.flight.flight_log import FlightFacts, FlightLog
from plugserve.core.flight.flight_records import HAS_GRAMMAR, IS_POOLED, PREFIX_BLOCKS
from plugserve.core.flight.request_story import RequestStory

_SPARE_IDS: Final = 256  # at both ends of a vocabulary, where control tokens are
_TAIL_SEED: Final = 1 << 33


@dataclass(frozen=True, slots=True)
class Measured:
    """One request's times in seconds: to its first token, between two tokens on average (None with one), in all."""

    ttft_s: float
    itl_s: float | None
    total_s: float


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """offset_s is when it arrived after the first one. params generate as many tokens as were recorded. in_engine and
    in_server are the recorded times, counted from its arrival in the engine and in the server; None for a request that
    had not ended."""

    id: str
    offset_s: float
    prompt: list[int]
    params: SamplingParams
    priority: int
    in_engine: Measured | None
    in_server: Measured | None


@dataclass(frozen=True, slots=True)
class Recording:
    """requests in order of arrival. left_out counts the requests that can't be repeated, by reason."""

    facts: FlightFacts
    requests: list[ReplayRequest]
    left_out: Counter[str]
    num_with_prompts: int


def open_log(path: Path) -> FlightLog:
    """Raises ConfigError for a file that can't be read."""
    try:
        return FlightLog(path)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None


def read_recording(
    log: FlightLog, last: int | None, max_model_len: int | None = None, vocab_size: int | None = None
) -> Recording:
    """The last requests (None: all) that generated tokens. max_model_len: longer ones are left out. Prompts are made up
    of ids below vocab_size (None: the recorded model's)."""
    records = log.requests()
    records = records[-last:] if last is not None else records
    left_out: Counter[str] = Counter()
    requests: list[ReplayRequest] = []
    num_with_prompts = 0
    first_s = float(records["arrival_s"].min()) if len(records) else 0.0
    end_s = max((float(records[name].max()) for name in ("arrival_s", "end_s") if len(records)), default=0.0)
    for record in records:
        story = RequestStory.of(record, end_s, end_s)
        reason = _why_not(story, max_model_len)
        if reason:
            left_out[reason] += 1
            continue
        kept = log.prompt(record)
        num_with_prompts += kept is not None
        prompt = (
            kept if kept is not None else _made_up(record, log.facts.block_size, vocab_size or log.facts.vocab_size)
        )
        requests.append(_request(story, prompt, first_s))
    return Recording(log.facts, requests, left_out, num_with_prompts)


def _why_not(story: RequestStory, max_model_len: int | None) -> str:
    record = story.record
    if record["flags"] & IS_POOLED:
        return "for embeddings"
    if story.state == "failed" and not record["scheduled_s"]:
        return "refused"
    length = int(record["num_prompt_tokens"]) + max(1, int(record["num_output_tokens"]))
    if max_model_len is not None and length > max_model_len:
        return f"longer than {max_model_len} tokens"
    return ""


def _request(story: RequestStory, prompt: list[int], first_s: float) -> ReplayRequest:
    record = story.record
    arrival_s, first_token_s = float(record["arrival_s"]), float(record["first_token_s"])
    in_engine = in_server = None
    if story.is_ended and first_token_s:
        in_engine = Measured(first_token_s - arrival_s, story.itl_s, story.end_s - arrival_s)
        in_server = Measured(first_token_s - story.arrived_s, story.itl_s, story.total_s)
    return ReplayRequest(
        id=story.text("id") or str(record["ordinal"]),
        offset_s=arrival_s - first_s,
        prompt=prompt,
        params=_params(record),
        priority=int(record["priority"]),
        in_engine=in_engine,
        in_server=in_server,
    )


def _params(record: Mapping[str, Any]) -> SamplingParams:
    """Those recorded, but for the end: as many tokens as were generated then. A grammar is not recorded."""
    num_tokens = max(1, int(record["num_output_tokens"]))
    return SamplingParams(
        max_tokens=num_tokens,
        min_tokens=0 if record["flags"] & HAS_GRAMMAR else min(int(record["min_tokens"]), num_tokens),
        ignore_eos=True,
        seed=int(record["seed"]),
        temperature=_plain(record["temperature"]),
        top_p=_plain(record["top_p"]),
        min_p=_plain(record["min_p"]),
        top_k=int(record["top_k"]),
        presence_penalty=_plain(record["presence_penalty"]),
        frequency_penalty=_plain(record["frequency_penalty"]),
        repetition_penalty=_plain(record["repetition_penalty"]),
        num_logprobs=None if record["num_logprobs"] < 0 else int(record["num_logprobs"]),
    )


def _plain(value: Any) -> float:
    """A number that was stored in four bytes, as it was written: 0.7 and not 0.699999988."""
    return float(str(np.float32(value)))


def _made_up(record: np.void, block_size: int, vocab_size: int) -> list[int]:
    """A prompt of the recorded length. Prompts whose beginnings had one name then begin alike."""
    count = int(record["num_prompt_tokens"])
    low = min(_SPARE_IDS, vocab_size // 4)
    high = max(low + 1, vocab_size - low)
    parts: list[np.ndarray[Any, Any]] = []
    num_done = 0
    for name, num_blocks in zip(record["prefix"], PREFIX_BLOCKS, strict=True):
        end = num_blocks * block_size
        if not name or end > count:
            break
        parts.append(np.random.default_rng(int(name)).integers(low, high, end - num_done))
        num_done = end
    parts.append(np.random.default_rng(_TAIL_SEED + int(record["ordinal"])).integers(low, high, count - num_done))
    return [int(token) for token in np.concatenate(parts)]
