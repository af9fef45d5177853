"""Traces: the arrival times and sizes of requests. JSON lines, of three kinds (docs/simulate.md):

    {"plugserve_trace": 1, ...}           facts of the engine; the first line, and again when an engine starts
    {"arrival_s": 12.5, "prompt_tokens": 300, "output_tokens": 42, ...}     one sequence
    {"steps": [[256, 3, 70000, 41.5], ...]}    steps: prompt tokens, decoding rows, attended pairs, ms

No text, key or token is in a trace.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgspec

from plugserve.core.contracts.scheduling import StepTime
from plugserve.core.errors import ConfigError

VERSION: Final = 1
HASHED_TOKENS: Final = 64
_LEAST_FREE_BYTES: Final = 1 << 16
"""Tokens for each entry of hash_ids, in traces that plugserve records."""


class StepTimeFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A step's duration: base + so much for each prompt token, decoding row (like a token where left out) and attended
    pair."""

    base_ms: float = 0.0
    per_token_us: float = 0.0
    per_row_us: float | None = None
    per_pair_us: float = 0.0

    def step_time(self) -> StepTime:
        per_row_us = self.per_token_us if self.per_row_us is None else self.per_row_us
        return StepTime(self.base_ms / 1e3, self.per_token_us / 1e6, per_row_us / 1e6, self.per_pair_us / 1e6)


_COUNTS: Final = (
    "block_size",
    "num_blocks",
    "num_host_blocks",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "hash_tokens",
)


class TraceFacts(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A header line; plugserve_trace is VERSION. Missing fields are unknown. hash_tokens: tokens for each entry of
    hash_ids."""

    plugserve_trace: int
    model: str = ""
    scheduler: str = ""
    block_size: int | None = None
    num_blocks: int | None = None
    num_host_blocks: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    hash_tokens: int | None = None
    step_time: StepTimeFacts | None = None


class TraceRequest(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One sequence. output_tokens is 0 for one that only pools, or was aborted before its first token. max_tokens: as
    asked for, output_tokens when left out. hash_ids name the prompt's beginning, hash_tokens tokens each: equal
    beginnings have equal entries; prefix_group is a shared beginning of prefix_tokens tokens. ttft_s and total_s are
    what was measured; finish "stop", "length", "abort" or "error"."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    max_tokens: int | None = None
    priority: int = 0
    user: str = ""
    model: str = ""
    hash_ids: tuple[int | str, ...] = ()
    prefix_group: str = ""
    prefix_tokens: int = 0
    ttft_s: float | None = None
    total_s: float | None = None
    finish: str = ""


class TraceSteps(msgspec.Struct, frozen=True, omit_defaults=True):
    """Some steps as (prompt tokens, decoding rows, attended pairs, milliseconds)."""

    steps: list[tuple[int, int, int, float]]
    model: str = ""


Line = TraceFacts | TraceRequest | TraceSteps


@dataclass(slots=True)
class Trace:
    """The part of a file that is about one model. requests are in order of arrival, the first one at 0 s."""

    facts: TraceFacts = field(default_factory=lambda: TraceFacts(plugserve_trace=VERSION))
    requests: list[TraceRequest] = field(default_factory=list)
    steps: list[tuple[int, int, int, float]] = field(default_factory=list)


def check_trace_path(path: str) -> None:
    """Raise ConfigError unless lines can be appended to path: it is or becomes a regular file, and has room."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise ConfigError(f"--record-trace {path} is not a regular file; name one, or a new file")
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o600)
        try:
            space = os.fstatvfs(descriptor)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"--record-trace {path!r} can't be written: {reason}") from None
    if space.f_bavail * space.f_frsize < _LEAST_FREE_BYTES:
        raise ConfigError(f"--record-trace {path} can't be written: its disk is full")


class TraceWriter:
    """Appends lines to a file; several processes may append to one file, as each write is one call."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._encoder = msgspec.json.Encoder()

    def write(self, lines: Iterable[Line]) -> None:
        """Raises OSError when the disk is full."""
        data = b"".join(self._encoder.encode(line) + b"\n" for line in lines)
        if data:
            os.write(self._descriptor, data)

    def close(self) -> None:
        os.close(self._descriptor)


def hash_ids(token_ids: Sequence[int], key: bytes) -> tuple[str, ...]:
    """A name for each whole run of HASHED_TOKENS tokens with all before it. Without key, no hash can be traced back to
    tokens, nor compared with hashes made with another key."""
    names: list[str] = []
    digest = b""
    for start in range(0, len(token_ids) - HASHED_TOKENS + 1, HASHED_TOKENS):
        run = ",".join(map(str, token_ids[start : start + HASHED_TOKENS])).encode()
        digest = blake2b(digest + run, digest_size=8, key=key).digest()
        names.append(digest.hex())
    return tuple(names)


# ---------------------------------------------------------------- reading


def read_trace(path: str, model: str | None = None) -> Trace:
    """The part of a trace that is about model; it may be left out where there is only one. Raises ConfigError naming
    file, line and fault."""
    try:
        with Path(os.path.expanduser(path)).open(encoding="utf-8") as file:
            lines = [_parse(text, f"{path} line {number}") for number, text in enumerate(file, 1) if text.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"--trace {path}: {reason}") from None
    return _gather(lines, path, model)


def _parse(text: str, place: str) -> Line:
    try:
        entry = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{place} is not JSON: {error}") from None
    if not isinstance(entry, dict):
        raise ConfigError(f"{place} must be a JSON object, got {type(entry).__name__}")
    try:
        if "plugserve_trace" in entry:
            return _checked_facts(msgspec.convert(entry, TraceFacts), place)
        if "steps" in entry:
            return msgspec.convert(entry, TraceSteps)
        return _checked_request(msgspec.convert(_plain(entry), TraceRequest), place)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{place}: {error}") from None


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
    """Mooncake's names (timestamp in ms, input_length, output_length) as ours."""
    if "arrival_s" in entry or "timestamp" not in entry:
        return entry
    own = {"arrival_s": entry["timestamp"], "prompt_tokens": entry.get("input_length")}
    own |= {"output_tokens": entry.get("output_length"), "hash_ids": entry.get("hash_ids", ())}
    if isinstance(own["arrival_s"], int | float):
        own["arrival_s"] /= 1000
    return {name: value for name, value in own.items() if value is not None}


def _checked_facts(facts: TraceFacts, place: str) -> TraceFacts:
    if facts.plugserve_trace != VERSION:
        raise ConfigError(f"{place}: a trace of version {facts.plugserve_trace}; this plugserve reads {VERSION}")
    for name in _COUNTS:
        value = getattr(facts, name)
        if value is not None and value < 1:
            raise ConfigError(f"{place}: {name} must be at least 1, got {value}")
    return facts


def _checked_request(request: TraceRequest, place: str) -> TraceRequest:
    least = {"prompt_tokens": 1, "output_tokens": 0, "prefix_tokens": 0}
    for name, value in least.items():
        if getattr(request, name) < value:
            raise ConfigError(f"{place}: {name} must be at least {value}, got {getattr(request, name)}")
    if request.max_tokens is not None and request.max_tokens < request.output_tokens:
        raise ConfigError(
            f"{place}: output_tokens {request.output_tokens} is more than max_tokens {request.max_tokens}"
        )
    return request


def _gather(lines: Sequence[Line], path: str, model: str | None) -> Trace:
    models = sorted({line.model for line in lines if line.model})
    if model is None and len(models) > 1:
        raise ConfigError(f"--trace {path} holds several models; choose one with --model: {', '.join(models)}")
    if model is not None and models and model not in models:
        raise ConfigError(f"--trace {path} holds nothing of --model {model}, but of {', '.join(models)}")
    trace = Trace()
    for line in lines:
        if model is not None and line.model not in ("", model):
            continue
        if isinstance(line, TraceFacts):
            trace.facts = line
        elif isinstance(line, TraceSteps):
            trace.steps += line.steps
        else:
            trace.requests.append(line)
    if not trace.requests:
        raise ConfigError(f"--trace {path} holds no requests")
    first_s = min(request.arrival_s for request in trace.requests)
    trace.requests = sorted(
        (msgspec.structs.replace(request, arrival_s=request.arrival_s - first_s) for request in trace.requests),
        key=lambda request: request.arrival_s,
    )
    return trace
