"""The engine of an encoder: admits inputs, batches those of similar length, delivers one vector each. Torch-free.

Nothing is kept between batches, so there are no blocks, rows or scheduler. Inputs wait in the order of priority (lower
first), then in turns of one input a user, then in order of arrival, so that a user's thousand documents don't hold up
another's one. The first of them is in the next batch. EncoderEngine has what EngineLoop calls.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from plugserve.core.contracts.encoding import MODELS_OWN, EncoderInput, EncoderRunner
from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.contracts.memory import MemoryUse
from plugserve.core.contracts.runner import RunnerInfo
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.engine.delivery import Delivery
from plugserve.core.engine.plugin_counts import PluginCounts
from plugserve.core.engine.sequence import RequestKey
from plugserve.core.engine.step_time import StepTimeFit
from plugserve.core.engine.switched_off import NoAdapters, NoFlightRecorder
from plugserve.core.flight.flight_entry import FlightEntry
from plugserve.core.memory.process_use import process_use
from plugserve.core.model_files.encoder_files import EMBED, POOLINGS
from plugserve.core.plugin_system.failure_policy import STRATEGY_POLICIES
from plugserve.core.plugin_system.plugin_guard import PluginGuard
from plugserve.core.wire.heartbeats import Pulse
from plugserve.core.wire.messages import FINISH_ABORT, FINISH_ERROR, FINISH_REFUSED, FINISH_STOP, StepOutputs
from plugserve.core.wire.request_origin import NO_ORIGIN, RequestOrigin

_MOST_PADDING: Final = 0.25  # of a batch's tokens
_MOST_CANDIDATES: Final = 1024
_MOST_ERRORS: Final = 3  # in a row
_CALL: Final = "encode"
_SPARE: Final = 3.0  # times the slowest rate seen lately
_FORGETTING: Final = 0.95
_FIRST_S_PER_BYTE_AND_TOKEN: Final = 2e-10


@dataclass(slots=True)
class _Waiting:
    """One input in the queue."""

    key: RequestKey
    input: EncoderInput
    user: str
    order: tuple[int, int, int]
    arrival_s: float
    flight: FlightEntry

    @property
    def length(self) -> int:
        return len(self.input.token_ids)


class EncoderEngine:
    """Calls runner for batches of at most info.max_num_batched_tokens tokens, padding included, and max_num_seqs
    inputs. Used from one thread."""

    is_compiling = False
    is_stalled = False

    def __init__(
        self,
        runner: EncoderRunner,
        info: RunnerInfo,
        *,
        max_num_seqs: int,
        max_num_waiting: int | None = None,
        runner_plugin: str = "runner",
        guard: PluginGuard | None = None,
        pulse: Pulse | None = None,
        clock: Callable[[], float] = time.monotonic,
        flight: NoFlightRecorder | None = None,
    ) -> None:
        self.stats = EngineStats()
        self.flight = flight if flight is not None else NoFlightRecorder()
        self.flight.connect(self)
        self.adapters = NoAdapters()
        self.step_time = StepTimeFit()
        self._guard = guard if guard is not None else PluginGuard()
        self._guard.watch(PluginCounts(self.stats))
        self._runner = runner
        self._measure_memory: Callable[[], MemoryUse] = getattr(runner, "measure_memory", process_use)
        self._runner_plugin = runner_plugin
        self._info = info
        self._max_num_seqs = max_num_seqs
        self._max_num_waiting = max_num_waiting
        self._pulse = pulse if pulse is not None else Pulse.unwatched()
        self._clock = clock
        self._delivery = Delivery(clock)
        self._waiting: dict[RequestKey, _Waiting] = {}
        self._num_admitted = 0
        self._turn = 0
        self._users: dict[str, tuple[int, int]] = {}  # of each with inputs that wait: how many, and the next one's turn
        self._num_errors = 0
        self._s_per_token = info.weight_bytes * _FIRST_S_PER_BYTE_AND_TOKEN
        self._poolings = (MODELS_OWN, *POOLINGS) if info.task == EMBED else (MODELS_OWN,)

    # ---- requests

    def admit(
        self,
        key: RequestKey,
        prompt: array[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        user: str = "",
        cache_salt: str = "",
        block_hashes: bytes = b"",
        adapter_id: int = 0,
        origin: RequestOrigin = NO_ORIGIN,
    ) -> None:
        """Take an input in; one that can't be served gets an error. What concerns caches and adapters has no meaning
        here."""
        arrival_s = self._clock()
        flight = self.flight.arrived(key, prompt, params, arrival_s, origin=origin, priority=priority)
        refusal = self._refusal(key, prompt, params)
        if refusal is not None:
            self._delivery.add_error(key, *refusal)
            self.flight.ended(flight, refusal[1])
            return
        self._num_admitted += 1
        self.stats.num_prompt_tokens += len(prompt)
        entry = EncoderInput(prompt, params.second_start, params.pooling)
        self._waiting[key] = _Waiting(
            key, entry, user, (priority, self._take_turn(user), self._num_admitted), arrival_s, flight
        )
        self.flight.entered(flight)

    def _refusal(self, key: RequestKey, prompt: array[int], params: SamplingParams) -> tuple[str, int] | None:
        """The reason why an input is refused, and the FINISH_ code; None for an admitted one."""
        fault = self._fault(key, prompt, params)
        if fault is not None:
            return fault, FINISH_ERROR
        if self._is_full():
            message = f"The server is busy: {self._max_num_waiting} requests wait already; try again in a moment."
            return message, FINISH_REFUSED
        return None

    def _take_turn(self, user: str) -> int:
        """The turn of user's next input: the one after its last that waits, and none that is over."""
        num_waiting, next_turn = self._users.get(user, (0, 0))
        turn = max(self._turn, next_turn)
        self._users[user] = (num_waiting + 1, turn + 1)
        return turn

    def _leave(self, key: RequestKey, finish: int = FINISH_ABORT) -> None:
        """Take an input out of the queue, with a FINISH_ code. Unknown keys are ignored."""
        left = self._waiting.pop(key, None)
        if left is not None:
            self.flight.ended(left.flight, finish)
            num_waiting, next_turn = self._users.pop(left.user)
            if num_waiting > 1:
                self._users[left.user] = (num_waiting - 1, next_turn)

    def _fault(self, key: RequestKey, prompt: array[int], params: SamplingParams) -> str | None:
        info = self._info
        if key in self._waiting:
            return f"request id {key[1]} is in use"
        if params.pooling not in self._poolings:
            return f"an encoder takes requests with pooling {', '.join(self._poolings)}, got {params.pooling!r}"
        if not 1 <= len(prompt) <= info.max_model_len:
            return f"an input has from 1 to {info.max_model_len} tokens, got {len(prompt)}"
        if not 0 <= params.second_start <= len(prompt):
            return f"second_start {params.second_start} is outside of the {len(prompt)} tokens"
        if np.frombuffer(prompt, dtype=np.uint32).max() >= info.vocab_size:  # negative ids are large ones
            return f"the input holds a token id outside the vocabulary of {info.vocab_size}"
        return None

    def _is_full(self) -> bool:
        """Those that the next batch can take don't count as waiting."""
        if self._max_num_waiting is None:
            return False
        return len(self._waiting) - self._max_num_seqs >= self._max_num_waiting

    def abort(self, key: RequestKey) -> None:
        """Leave an input out of the batches to come. Unknown keys are ignored."""
        self._leave(key)

    def abort_worker(self, identity: bytes) -> int:
        """Forget every input of one server worker; returns how many."""
        keys = [key for key in self._waiting if key[0] == identity]
        for key in keys:
            self._leave(key)
        return len(keys)

    def refuse_adapter(self, adapter_id: int, reason: str) -> None: ...

    def admit_compiled(self) -> None: ...

    # ---- batches

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    def step(self) -> None:
        """Run one batch, if any input waits."""
        if not self._waiting:
            return
        batch = self._choose()
        started_s = self._clock()
        num_tokens = batch[-1].length * len(batch)  # the longest is last
        for one in batch:
            self.flight.scheduled(one.flight, 0)
        self._pulse.compute(_SPARE * self._s_per_token * num_tokens)
        try:
            vectors = self._runner.encode([one.input for one in batch])
            if len(vectors) != len(batch):
                raise ValueError(f"encode returned {len(vectors)} vectors for {len(batch)} inputs")
        except BaseException as error:
            self._fail(batch, error)
            return
        finally:
            self._pulse.beat()
        self._num_errors = 0
        duration_s = self._clock() - started_s
        self._s_per_token = max(duration_s / num_tokens, _FORGETTING * self._s_per_token)
        self._guard_seconds(duration_s)
        self.stats.note_step(sum(one.length for one in batch), 0)
        self.flight.encoded(len(batch), num_tokens, duration_s)
        for one, vector in zip(batch, vectors, strict=True):
            self._leave(one.key, FINISH_STOP)
            self._delivery.add_vector(one.key, vector, arrived_s=one.arrival_s, scheduled_s=started_s)

    def _choose(self) -> list[_Waiting]:
        """The next batch, by length: the first in the queue, and those of nearest length that fit with it into the
        tokens of a batch without too much padding."""
        queue = sorted(self._waiting.values(), key=lambda one: one.order)[:_MOST_CANDIDATES]
        first = queue[0]
        self._turn = max(self._turn, first.order[1])
        by_length = sorted(queue, key=lambda one: (one.length, one.order))
        low = high = by_length.index(first)
        num_tokens = first.length
        while high - low + 1 < self._max_num_seqs:
            below = first.length - by_length[low - 1].length if low > 0 else None
            above = by_length[high + 1].length - first.length if high + 1 < len(by_length) else None
            if below is None and above is None:
                break
            takes_below = above is None or (below is not None and below <= above)
            added = by_length[low - 1] if takes_below else by_length[high + 1]
            longest = max(by_length[high].length, added.length)
            padded = longest * (high - low + 2)
            has_room = padded <= self._info.max_num_batched_tokens
            if not has_room or padded - num_tokens - added.length > _MOST_PADDING * padded:
                break
            num_tokens += added.length
            low, high = (low - 1, high) if takes_below else (low, high + 1)
        return by_length[low : high + 1]

    def _fail(self, batch: list[_Waiting], error: BaseException) -> None:
        """Fail the batch's inputs; after several failures in a row re-raise, which ends the process."""
        self._guard.note_failure(self._runner_plugin, _CALL, error, STRATEGY_POLICIES["model runner"])
        self._num_errors += 1
        if self._num_errors >= _MOST_ERRORS:
            raise error
        for one in batch:
            self._leave(one.key, FINISH_ERROR)
            self._delivery.add_error(one.key, f"the model runner failed: {type(error).__name__}")

    def _guard_seconds(self, duration_s: float) -> None:
        key = f"{self._runner_plugin} {_CALL}"
        self.stats.plugin_seconds[key] = self.stats.plugin_seconds.get(key, 0.0) + duration_s
        self.stats.plugin_calls[key] = self.stats.plugin_calls.get(key, 0) + 1

    # ---- what the flight recorder reads

    num_running = num_free_blocks = num_cached_blocks = 0
    num_free_rows = 1

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def block_states(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.zeros(0, dtype=np.uint8)

    # ---- results

    def take_outputs(self) -> list[tuple[bytes, StepOutputs]]:
        """The outputs since the last call, one message a worker."""
        return self._delivery.take()

    def drain(self) -> None:
        """Nothing is in flight between batches."""

    def snapshot(self) -> EngineStats:
        """Current counts, in an object that does not change any more."""
        self.stats.num_requests_waiting = len(self._waiting)
        self.stats.memory = self._measure_memory()
        return self.stats.copy()

    def check_integrity(self) -> None:
        """There are no blocks to check."""
        self.stats.num_integrity_checks += 1
