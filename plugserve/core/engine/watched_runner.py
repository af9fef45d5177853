"""Wraps a model runner: writes the expected duration of its steps into the engine's heartbeat.

A step of a large model on a slow device takes longer than a loop may be silent, so a step is a phase of its own
whose limit follows from what steps have taken so far.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from plugserve.core.contracts.memory import MemoryEstimator
from plugserve.core.contracts.runner import ModelRunner, RunnerInfo, StepInput, StepResult
from plugserve.core.wire.heartbeats import Pulse

_SPARE: Final = 3.0  # times the slowest rate seen lately
_FORGETTING: Final = 0.95
_FIRST_S_PER_BYTE: Final = 1e-9  # reading the weights once, at a pace that no disk-backed device undercuts
_FIRST_S_PER_BYTE_AND_TOKEN: Final = 2e-10


class WatchedRunner:
    """A runner that has been loaded, in the engine's hands. Adds two clock readings to a step.

    The expected time of a step is its tokens times the slowest time per token seen lately: an upper bound, since larger
    steps take less time a token.
    """

    def __init__(self, runner: ModelRunner, info: RunnerInfo, pulse: Pulse) -> None:
        self._runner = runner
        self._pulse = pulse
        self._num_tokens: deque[int] = deque()  # of the steps in flight
        self._first_s = info.weight_bytes * _FIRST_S_PER_BYTE
        self._s_per_token = info.weight_bytes * _FIRST_S_PER_BYTE_AND_TOKEN
        self.owns_attention = runner.owns_attention
        self.provide_masks = runner.provide_masks
        self.close = runner.close
        if isinstance(runner, MemoryEstimator):
            self.measure_memory = runner.measure_memory

    def load(self) -> RunnerInfo:
        raise RuntimeError("a watched runner is loaded already")

    def launch(self, step: StepInput) -> None:
        self._num_tokens.append(sum(step.num_tokens))
        self._pulse.compute(self._expected_s())
        self._runner.launch(step)
        self._pulse.beat()

    def collect(self) -> StepResult:
        self._pulse.compute(self._expected_s())
        try:
            result = self._runner.collect()
        finally:
            num_tokens = self._num_tokens.popleft()
            self._pulse.beat()
        if num_tokens and result.duration_s:
            self._first_s = 0.0
            self._s_per_token = max(result.duration_s / num_tokens, _FORGETTING * self._s_per_token)
        return result

    def _expected_s(self) -> float:
        return _SPARE * (self._first_s + self._s_per_token * sum(self._num_tokens))
