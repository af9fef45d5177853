"""One scheduler on one trace: the real engine, block pool and scheduler on a simulated runner and a virtual clock."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import numpy as np

from plugserve.core.contracts.prefix_cache import PrefixCache
from plugserve.core.contracts.runner import RunnerInfo
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.contracts.scheduling import Scheduler, StepTime
from plugserve.core.engine.engine import Engine
from plugserve.core.engine.engine_state import EngineLimits
from plugserve.core.wire.messages import FINISH_ERROR, FINISH_NONE, FINISH_REFUSED, StepOutputs
from plugserve.core.wire.trace_file import HASHED_TOKENS, TraceRequest
from plugserve.simulate.simulated_runner import END_ID, SimulatedRunner, VirtualClock

_WORKER: Final = b"trace"
_VOCAB_SIZE: Final = 50_000
_STALL_S: Final = 0.005  # as in the engine's loop: the scheduler is called again this long after an empty plan


@dataclass(frozen=True, slots=True)
class Machine:
    """The simulated machine. The fields are those of the settings of the same names; num_host_blocks KV blocks of
    preempted sequences fit into host memory (--swap-space)."""

    step_time: StepTime
    block_size: int
    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    hash_tokens: int = HASHED_TOKENS
    max_num_waiting: int | None = None
    num_host_blocks: int = 0


@dataclass(slots=True)
class Served:
    """The result of one request; times on the trace's clock. first_s and end_s are None for what failed."""

    request: TraceRequest
    num_tokens: int = 0
    first_s: float | None = None
    end_s: float | None = None
    error: str = ""

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_s is None else self.first_s - self.request.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time between tokens; None for a single one."""
        if self.first_s is None or self.end_s is None or self.num_tokens < 2:
            return None
        return (self.end_s - self.first_s) / (self.num_tokens - 1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The results of a simulation. num_cached_tokens: prompt tokens that the prefix cache gave."""

    served: list[Served]
    num_steps: int = 0
    num_preemptions: int = 0
    num_plan_errors: int = 0
    num_cached_tokens: int = 0
    busy_s: float = 0.0


class Simulation:
    """Run once."""

    def __init__(
        self, machine: Machine, scheduler: Scheduler, name: str, prefix_cache: PrefixCache | None = None
    ) -> None:
        info = RunnerInfo(
            vocab_size=_VOCAB_SIZE,
            max_model_len=machine.max_model_len,
            max_num_batched_tokens=machine.max_num_batched_tokens,
            num_blocks=machine.num_blocks,
            block_size=machine.block_size,
            kv_cache_bytes=0,
            weight_bytes=0,
            dtype="float32",
            device="simulated",
            num_host_slots=machine.num_host_blocks,
        )
        self._clock = VirtualClock()
        self._runner = SimulatedRunner(info, machine.step_time, self._clock)
        self._has_prefix_cache = prefix_cache is not None
        self._hash_tokens = machine.hash_tokens
        self._engine = Engine(
            runner=self._runner,
            info=info,
            scheduler=scheduler,
            scheduler_name=name,
            limits=EngineLimits(machine.max_num_batched_tokens, machine.max_num_seqs, machine.max_num_waiting),
            eos_ids=[END_ID],
            prefix_cache=prefix_cache,
            clock=self._clock,
        )

    def run(self, requests: Sequence[TraceRequest]) -> Outcome:
        """Serve requests, which are in order of arrival, to the last token."""
        engine, clock = self._engine, self._clock
        served = [Served(request) for request in requests]
        next_up = 0
        while next_up < len(served) or engine.has_work:
            while next_up < len(served) and served[next_up].request.arrival_s <= clock.now_s:
                self._admit(next_up, served[next_up].request)
                next_up += 1
            next_arrival_s = served[next_up].request.arrival_s if next_up < len(served) else None
            if engine.has_work:
                engine.step()
                if engine.is_stalled:
                    clock.wait_until(min(clock.now_s + _STALL_S, next_arrival_s or clock.now_s + _STALL_S))
            elif next_arrival_s is not None:
                clock.wait_until(next_arrival_s)
            for _, outputs in engine.take_outputs():
                self._note(outputs, served)
        engine.drain()
        stats = engine.snapshot()
        return Outcome(
            served=served,
            num_steps=stats.num_steps,
            num_preemptions=stats.num_preemptions,
            num_plan_errors=stats.num_plan_errors,
            num_cached_tokens=stats.num_prefix_hit_tokens,
            busy_s=self._runner.busy_s,
        )

    def _admit(self, id: int, request: TraceRequest) -> None:
        output = request.output_tokens
        params = SamplingParams(
            max_tokens=(request.max_tokens or output) if output else 0,
            seed=0,
            min_tokens=max(0, output - 1),  # it may end with its output-th token, and does
            pooling="" if output else "last",
        )
        self._engine.admit(
            (_WORKER, id), self._prompt(id, request), params, priority=request.priority, user=request.user
        )

    def _prompt(self, id: int, request: TraceRequest) -> array[int]:
        """Prompts' tokens, equal where the trace's hashes are equal. Without a prefix cache all may be equal."""
        count = request.prompt_tokens
        if not self._has_prefix_cache:
            return array("i", [1]) * count
        parts = [(f"hash {hash_id}", self._hash_tokens) for hash_id in request.hash_ids]
        if request.prefix_group:
            parts = [(f"group {request.prefix_group}", request.prefix_tokens)]
        known = sum(length for _, length in parts)
        tokens = np.concatenate([_tokens(*part) for part in (*parts, (f"request {id}", max(0, count - known)))])
        return array("i", tokens[:count].tobytes())

    def _note(self, outputs: StepOutputs, served: list[Served]) -> None:
        now_s = self._clock.now_s
        for id, count, finish in zip(outputs.ids, outputs.num_tokens, outputs.finish, strict=True):
            entry = served[id]
            entry.num_tokens += count
            if finish in (FINISH_ERROR, FINISH_REFUSED):
                entry.first_s, entry.error = None, outputs.errors.get(id, "failed")
                continue
            if entry.first_s is None:
                entry.first_s = now_s
            if finish != FINISH_NONE:
                entry.end_s = now_s


def _tokens(name: str, count: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """count pseudo-random token ids that depend on name alone, none of them END_ID."""
    seed = int.from_bytes(blake2b(name.encode(), digest_size=8).digest())
    return np.random.Generator(np.random.PCG64(seed)).integers(1, _VOCAB_SIZE, count, dtype=np.int32)
