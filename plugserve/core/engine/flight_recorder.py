"""The engine's flight recorder: writes a record of each request and of each step into a file in shared memory.

The file is what remains of an engine that was killed, and what other processes read of one that runs. A step costs one
struct.pack_into and a request a few; nothing waits, and the file is written by the system alone, page by page.
"""

from __future__ import annotations

import base64
import logging
import os
import struct
import time
from array import array
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
import numpy as np

from plugserve import __version__
from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.contracts.runner import RunnerInfo
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.contracts.weights import ModelSource
from plugserve.core.engine.switched_off import NoFlightRecorder
from plugserve.core.flight.block_map import block_map
from plugserve.core.flight.flight_entry import NO_SLOT, FlightEntry
from plugserve.core.flight.flight_file import FlightFile, FlightSizes
from plugserve.core.flight.flight_log import FlightFacts
from plugserve.core.flight.flight_records import (
    ALIVE,
    ENDED,
    GAUGES,
    HAS_ADAPTER,
    HAS_GRAMMAR,
    HAS_PREFIX,
    IGNORES_EOS,
    IS_POOLED,
    PREFIX_BLOCKS,
    PROGRESS,
    REQUEST,
    STEP,
)
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.block_hash import HASH_BYTES
from plugserve.core.wire.messages import FINISH_NONE
from plugserve.core.wire.request_origin import NO_ORIGIN, RequestOrigin

if TYPE_CHECKING:
    from plugserve.core.engine.batch import Batch

log = logging.getLogger(__name__)

_PERIOD_S: Final = 1.0
_STEPS_A_REQUEST: Final = 4
_NUM_TOKENS: Final = 1 << 22
_SERIAL: Final = struct.Struct("<Q")
_COUNT: Final = struct.Struct("<I")
_SERIAL_END_AT: Final = REQUEST.offset("serial_end")
_PROGRESS_AT: Final = REQUEST.offset("state")
_OUTPUT_AT: Final = REQUEST.offset("num_output_tokens")
_LARGEST_FLOAT: Final = 3.4e38
_NO_NAMES: Final = (0,) * len(PREFIX_BLOCKS)


class FlightSource(Protocol):
    """What a recorder reads of its engine."""

    @property
    def stats(self) -> EngineStats: ...

    @property
    def num_running(self) -> int: ...

    @property
    def num_waiting(self) -> int: ...

    @property
    def num_free_rows(self) -> int: ...

    @property
    def num_free_blocks(self) -> int:
        """Cached ones included."""

    @property
    def num_cached_blocks(self) -> int: ...

    def block_states(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """See BlockPool.states; empty for an engine without blocks."""


class FlightRecorder(NoFlightRecorder):
    """Writes file. clock is the engine's. max_num_tokens: the most that one step computes."""

    def __init__(self, file: FlightFile, max_num_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._map = file.map
        self._clock = clock
        self._max_num_tokens = max_num_tokens
        self._key = os.urandom(16)  # never stored: no prompt can be tried against the names of prefixes
        self._tokens = memoryview(file.map)[file.tokens_at :].cast("i")
        self._tokens_end = 0
        self._alive: list[FlightEntry | None] = [None] * file.sizes.num_requests
        self._next_slot = self._num_alive = 0
        self._num_requests = self._num_without_slot = 0
        self._num_steps = self._num_no_blocks = self._num_no_rows = 0
        self._num_preempted = self._num_generated = 0
        self._last_step_s = 0.0
        self._due_s = 0.0
        self._num_ticks = 0

    def connect(self, source: FlightSource) -> None:
        self._source = source

    # ---- requests

    def arrived(
        self,
        key: tuple[bytes, int],
        prompt: array[int],
        params: SamplingParams,
        at_s: float,
        *,
        origin: RequestOrigin = NO_ORIGIN,
        priority: int = 0,
        adapter: str = "",
        block_hashes: bytes = b"",
    ) -> FlightEntry:
        self._num_requests += 1
        entry = FlightEntry(self._num_requests, self._take_slot(), prompt)
        entry.ready_s = at_s
        if entry.slot == NO_SLOT:
            self._num_without_slot += 1
            return entry
        entry.num_beside = self._source.num_running
        self._alive[entry.slot] = entry
        self._num_alive += 1
        flags = (
            HAS_GRAMMAR * bool(params.grammar)
            | HAS_ADAPTER * bool(adapter)
            | IS_POOLED * bool(params.pooling)
            | IGNORES_EOS * params.ignore_eos
            | HAS_PREFIX * bool(block_hashes)
        )
        source, serial = self._source, _serial_of(entry)
        REQUEST.struct.pack_into(
            self._map, self._start_of(entry), serial,
            entry.ordinal, key[1], key[0][:24], origin.id.encode()[:48], origin.route.encode()[:24],
            adapter.encode()[:40], at_s, _float32(origin.before_s),
            _float32(origin.load_wait_s), source.num_waiting,
            len(prompt), _uint32(params.max_tokens), _int32(priority), flags, params.seed & 0xFFFFFFFFFFFFFFFF,
            _float32(params.temperature), _float32(params.top_p), _float32(params.min_p),
            _float32(params.presence_penalty), _float32(params.frequency_penalty), _float32(params.repetition_penalty),
            _int32(params.top_k), _uint32(params.min_tokens),
            -1 if params.num_logprobs is None else _int32(params.num_logprobs), self._keep(prompt),
            *self._names(block_hashes),
            *self._progress(entry, ALIVE, FINISH_NONE, 0.0), serial,
        )  # fmt: skip
        return entry

    def ready(self, entry: FlightEntry) -> None:
        entry.ready_s = self._clock()
        self._write(entry)

    def entered(self, entry: FlightEntry) -> None:
        entry.entered_s = self._clock()
        entry.num_no_blocks, entry.num_no_rows = self._num_no_blocks, self._num_no_rows  # to be subtracted
        self._write(entry)

    def scheduled(self, entry: FlightEntry, num_cached_tokens: int) -> None:
        entry.scheduled_s = self._clock()
        entry.num_cached_tokens = num_cached_tokens
        entry.first_step = self.launching
        entry.num_beside = self._source.num_running
        entry.num_no_blocks = self._num_no_blocks - entry.num_no_blocks
        entry.num_no_rows = self._num_no_rows - entry.num_no_rows
        self._write(entry)

    def first_token(self, entry: FlightEntry) -> None:
        entry.first_token_s = self._clock()
        self._write(entry)

    def preempted(self, entry: FlightEntry) -> None:
        entry.num_preemptions += 1
        self._write(entry)

    def ended(self, entry: FlightEntry, finish: int) -> None:
        if entry.slot != NO_SLOT:
            self._write(entry, ENDED, finish, self._clock())
            self._alive[entry.slot] = None
            self._num_alive -= 1
            entry.slot = NO_SLOT

    def _take_slot(self) -> int:
        """The next slot whose request has ended, which is about the oldest one."""
        num_slots = len(self._alive)
        if self._num_alive >= num_slots:
            return NO_SLOT
        slot = self._next_slot
        while self._alive[slot] is not None:
            slot = (slot + 1) % num_slots
        self._next_slot = (slot + 1) % num_slots
        return slot

    def _start_of(self, entry: FlightEntry) -> int:
        return self._file.requests_at + entry.slot * REQUEST.size

    def _write(self, entry: FlightEntry, state: int = ALIVE, finish: int = FINISH_NONE, end_s: float = 0.0) -> None:
        """The part of a record that changes, between its two serials."""
        if entry.slot == NO_SLOT:
            return
        start = self._start_of(entry)
        entry.serial += 1
        serial = _serial_of(entry)
        _SERIAL.pack_into(self._map, start, serial)
        PROGRESS.struct.pack_into(self._map, start + _PROGRESS_AT, *self._progress(entry, state, finish, end_s))
        _SERIAL.pack_into(self._map, start + _SERIAL_END_AT, serial)

    def _progress(self, entry: FlightEntry, state: int, finish: int, end_s: float) -> tuple[float | int, ...]:
        is_scheduled = entry.scheduled_s > 0
        return (
            state, finish, entry.ready_s, entry.entered_s, entry.scheduled_s, entry.first_token_s, end_s,
            entry.first_step, self.launching, entry.num_cached_tokens, entry.num_output_tokens, entry.num_preemptions,
            entry.num_beside, entry.num_no_blocks if is_scheduled else 0, entry.num_no_rows if is_scheduled else 0,
        )  # fmt: skip

    def _names(self, block_hashes: bytes) -> tuple[int, ...]:
        """Names of the prompt's beginnings of PREFIX_BLOCKS blocks."""
        if not block_hashes:
            return _NO_NAMES
        num_blocks = len(block_hashes) // HASH_BYTES
        names = list(_NO_NAMES)
        for i, count in enumerate(PREFIX_BLOCKS):
            if count > num_blocks:
                break
            hash = block_hashes[(count - 1) * HASH_BYTES : count * HASH_BYTES]
            names[i] = int.from_bytes(blake2b(hash, digest_size=4, key=self._key).digest(), "little") or 1
        return tuple(names)

    def _keep(self, prompt: array[int]) -> int:
        """Keep the prompt's token ids, if any are kept: where they begin, counted from the first ever kept; else -1."""
        size = self._file.sizes.num_tokens
        if len(prompt) > size:
            return -1
        start = self._tokens_end
        at, given = start % size, memoryview(prompt)
        head = min(len(prompt), size - at)
        self._tokens[at : at + head] = given[:head]
        self._tokens[: len(prompt) - head] = given[head:]
        self._tokens_end += len(prompt)
        return start

    # ---- steps

    def step(self, batch: Batch, duration_s: float) -> None:
        source, stats = self._source, self._source.stats
        now_s = self._clock()
        num_tokens, num_drafts = sum(batch.num_tokens), sum(batch.num_drafts)
        num_prompt_tokens = num_tokens - num_drafts - batch.num_decoding
        longest = longest_of = 0
        if num_prompt_tokens > 0:
            longest = max(batch.num_tokens)
            longest_of = batch.sequences[batch.num_tokens.index(longest)].flight.ordinal
        num_running, num_waiting = source.num_running, source.num_waiting
        if num_waiting:
            self._note_wait(num_tokens)
        self._num_steps += 1
        serial, last_s = self._num_steps, self._last_step_s
        STEP.struct.pack_into(
            self._map, self._file.steps_at + (serial - 1) % self._file.sizes.num_steps * STEP.size,
            serial, batch.step_id, now_s, duration_s, now_s - last_s if last_s else duration_s,
            len(batch.sequences), num_tokens, num_prompt_tokens if num_prompt_tokens > 0 else 0, batch.num_decoding,
            batch.num_pairs, num_drafts, stats.num_generated_tokens - self._num_generated,
            stats.num_preemptions - self._num_preempted, num_running, num_waiting, _uint32(source.num_free_blocks),
            longest, longest_of, serial,
        )  # fmt: skip
        self._num_generated, self._num_preempted = stats.num_generated_tokens, stats.num_preemptions
        self._last_step_s = now_s if num_running else 0.0

    def encoded(self, num_rows: int, num_tokens: int, duration_s: float) -> None:
        self._num_steps += 1
        serial, now_s = self._num_steps, self._clock()
        STEP.struct.pack_into(
            self._map, self._file.steps_at + (serial - 1) % self._file.sizes.num_steps * STEP.size,
            serial, serial, now_s, duration_s, duration_s, num_rows, num_tokens, num_tokens, 0, 0, 0, 0, 0, 0,
            self._source.num_waiting, 0, 0, 0, serial,
        )  # fmt: skip

    def _note_wait(self, num_tokens: int) -> None:
        """Why the step left requests waiting."""
        if not self._source.num_free_rows:
            self._num_no_rows += 1
        elif num_tokens < self._max_num_tokens:
            self._num_no_blocks += 1

    # ---- counts

    def tick(self) -> None:
        now_s = self._clock()
        if now_s < self._due_s:
            return
        self._due_s = now_s + _PERIOD_S
        self._num_ticks += 1
        self._write_gauges(now_s)
        for entry in self._alive if self._num_alive else ():
            if entry is not None and entry.first_token_s:
                _COUNT.pack_into(self._map, self._start_of(entry) + _OUTPUT_AT, entry.num_output_tokens)
        if self._file.watched_until_s > now_s:
            self._file.write_detail(self._num_ticks, self._detail())

    def leave(self) -> None:
        self._num_ticks += 1
        self._write_gauges(self._clock(), has_left=True)

    def _write_gauges(self, now_s: float, *, has_left: bool = False) -> None:
        source, stats = self._source, self._source.stats
        GAUGES.struct.pack_into(
            self._map, self._file.gauges_at,
            self._num_ticks, now_s, time.time() - self._clock(), source.num_running, source.num_waiting,
            stats.num_blocks, max(0, stats.num_blocks - source.num_free_blocks), max(0, source.num_cached_blocks),
            stats.num_steps,
            stats.num_prompt_tokens, stats.num_generated_tokens, stats.num_preemptions,
            stats.num_prefix_queried_tokens, stats.num_prefix_hit_tokens, stats.num_draft_tokens,
            stats.num_accepted_draft_tokens, self._num_requests, self._num_without_slot, self._tokens_end,
            has_left, self._num_ticks,
        )  # fmt: skip

    def _detail(self) -> bytes:
        stats = self._source.stats
        return msgspec.json.encode(
            {
                "plugin_calls": stats.plugin_calls,
                "plugin_seconds": stats.plugin_seconds,
                "plugin_errors": stats.plugin_errors,
                "kv_map": base64.b64encode(block_map(self._source.block_states())).decode(),
            }
        )


def make_flight_recorder(
    path: Path | None, settings: Settings, info: RunnerInfo, source: ModelSource, generation: int = 0
) -> NoFlightRecorder:
    """Recorder into path, as the settings want it; none without a path. A disk without room costs the recorder and not
    the engine."""
    if path is None or not settings.flight_recorder:
        return NoFlightRecorder()
    count = settings.flight_recorder
    sizes = FlightSizes(count, _STEPS_A_REQUEST * count, _NUM_TOKENS if settings.flight_recorder_prompts else 0)
    facts = FlightFacts(
        model=source.name,
        path=str(source.path),
        version=__version__,
        pid=os.getpid(),
        started_s=time.time(),
        epoch_offset_s=time.time() - time.monotonic(),
        scheduler=settings.scheduler,
        prefix_caching=settings.enable_prefix_caching,
        task=info.task,
        dtype=info.dtype,
        device=info.device,
        block_size=info.block_size,
        num_blocks=info.num_blocks,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=info.max_num_batched_tokens,
        max_model_len=info.max_model_len,
        vocab_size=info.vocab_size,
    )
    try:
        file = FlightFile.create(path, sizes, msgspec.json.encode(facts))
    except OSError as error:
        log.warning("flight recorder is off: its file can't be written: %s", error)
        return NoFlightRecorder()
    return FlightRecorder(file, info.max_num_batched_tokens)


def _serial_of(entry: FlightEntry) -> int:
    """Differs for each write of each record."""
    return (entry.ordinal << 16) + (entry.serial & 0xFFFF) + 1


def _int32(value: int) -> int:
    """The nearest that fits: a request that is refused, or changed by a plugin, may hold anything."""
    return max(-(1 << 31), min(value, (1 << 31) - 1))


def _uint32(value: int) -> int:
    return max(0, min(value, (1 << 32) - 1))


def _float32(value: float) -> float:
    return max(-_LARGEST_FLOAT, min(value, _LARGEST_FLOAT))
