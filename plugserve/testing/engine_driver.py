"""Steps the real engine on a fake runner, for the cases of schedulers and prefix caches."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from plugserve.core.contracts.prefix_cache import PrefixCache
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.contracts.scheduling import Scheduler
from plugserve.core.engine.engine import Engine
from plugserve.core.engine.engine_state import EngineLimits
from plugserve.core.engine.flight_recorder import FlightRecorder
from plugserve.core.flight.flight_file import FlightFile
from plugserve.core.wire import block_hash
from plugserve.core.wire.messages import FINISH_LENGTH
from plugserve.testing.fake_runner import FakeRunner, expected_tokens

WORKER = b"worker:0"


@dataclass(slots=True)
class Request:
    """One request and its result. finish is a FINISH_ code, 0 while it runs; error is the reason of a failure."""

    prompt: list[int]
    max_tokens: int
    tokens: list[int] = field(default_factory=list)
    finish: int = 0
    error: str = ""
    num_cached_tokens: int = 0
    is_aborted: bool = False

    @property
    def is_done(self) -> bool:
        return bool(self.finish) or self.is_aborted


class EngineDriver:
    """An engine with the given scheduler and prefix cache. step_s is the time by which each step advances its clock.
    num_host_slots KV blocks of preempted sequences fit into host memory.
    hashes_prompts: prompts are sent with their block hashes, as by a server; else the engine computes them. flight_file
    gets what a flight recorder writes of the engine."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        prefix_cache: PrefixCache | None = None,
        max_num_tokens: int = 64,
        max_num_seqs: int = 8,
        num_blocks: int = 64,
        block_size: int = 16,
        num_host_slots: int = 0,
        step_s: float = 0.01,
        hashes_prompts: bool = False,
        flight_file: FlightFile | None = None,
    ) -> None:
        self.runner = FakeRunner(num_blocks=num_blocks, block_size=block_size, num_host_slots=num_host_slots)
        self.now_s = 0.0
        self.num_steps = 0
        self.requests: list[Request] = []
        self._step_s = step_s
        self._hashes_prompts = hashes_prompts
        self.engine = Engine(
            runner=self.runner,
            info=self.runner.load(),
            scheduler=scheduler,
            scheduler_name=type(scheduler).__name__,
            limits=EngineLimits(max_num_tokens, max_num_seqs),
            prefix_cache=prefix_cache,
            clock=lambda: self.now_s,
            flight=None if flight_file is None else FlightRecorder(flight_file, max_num_tokens, lambda: self.now_s),
        )

    def send(self, prompt: Sequence[int], max_tokens: int, **admission: Any) -> int:
        """Admit a request; returns its number. admission goes to Engine.admit: priority, user, cache_salt."""
        number = len(self.requests)
        self.requests.append(Request(list(prompt), max_tokens))
        if self._hashes_prompts:
            salt = block_hash.salt_of("", cache_salt=admission.get("cache_salt", ""))
            hashes = block_hash.hash_blocks(salt, prompt, self.runner.info.block_size)
            admission["block_hashes"] = b"".join(hashes)
        self.engine.admit(
            (WORKER, number), array("i", prompt), SamplingParams(max_tokens=max_tokens, seed=0), **admission
        )
        return number

    def abort(self, number: int) -> None:
        """Abort a request, as when its client disconnects."""
        self.requests[number].is_aborted = True
        self.engine.abort((WORKER, number))

    def step(self) -> None:
        """One step, then an integrity check. Raises AssertionError if the block pool is inconsistent."""
        self.now_s += self._step_s
        self.num_steps += 1
        self.engine.step()
        self._receive()
        self.engine.check_integrity()
        assert self.engine.stats.num_integrity_errors == 0, "the block pool is inconsistent (see the log)"

    def run(self, max_steps: int = 5000) -> None:
        """Step until all requests have ended. Raises AssertionError after max_steps."""
        for _ in range(max_steps):
            if not self.engine.has_work:
                break
            self.step()
        self._receive()
        left = [number for number, request in enumerate(self.requests) if not request.is_done]
        assert not self.engine.has_work, f"requests {left} are not finished after {max_steps} steps"

    def _receive(self) -> None:
        for _, message in self.engine.take_outputs():
            tokens, at = array("i", message.tokens), 0
            for number, count, finish in zip(message.ids, message.num_tokens, message.finish, strict=True):
                request = self.requests[number]
                request.tokens += tokens[at : at + count]
                request.finish = finish
                at += count
            for number, error in message.errors.items():
                self.requests[number].error = error
            for number, (_, num_cached_tokens) in message.started.items():
                self.requests[number].num_cached_tokens = num_cached_tokens

    def assert_exact(self, numbers: Iterable[int] | None = None) -> None:
        """Every finished request has exactly the expected tokens of its prompt; none failed."""
        for number in range(len(self.requests)) if numbers is None else numbers:
            request = self.requests[number]
            assert not request.error, f"request {number} failed: {request.error}"
            expected = expected_tokens(request.prompt, request.max_tokens)
            if request.is_aborted:
                assert request.tokens == expected[: len(request.tokens)], f"request {number}: wrong tokens"
                continue
            assert request.tokens == expected, f"request {number}: wrong tokens"
            assert request.finish == FINISH_LENGTH, f"request {number} ended with finish code {request.finish}"

    def assert_all_memory_is_back(self) -> None:
        """All blocks are free."""
        pool = self.engine.kv
        assert pool.num_free == pool.num_blocks, f"{pool.num_blocks - pool.num_free} blocks were never freed"
