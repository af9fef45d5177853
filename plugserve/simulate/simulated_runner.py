"""A model runner that advances a virtual clock instead of computing, and that clock.

Every row that samples draws END_ID, so a sequence ends as soon as its min_tokens allow (see simulation.py).
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from plugserve.core.contracts.runner import RunnerInfo, StepInput, StepResult
from plugserve.core.contracts.scheduling import StepTime

END_ID: Final = 0


class VirtualClock:
    """Seconds that pass only in wait_until."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def wait_until(self, time_s: float) -> None:
        """Move on to time_s; an earlier time changes nothing."""
        self.now_s = max(self.now_s, time_s)


class SimulatedRunner:
    """ModelRunner on a virtual clock: a step starts when it is launched and the one before has ended."""

    owns_attention = True

    def __init__(self, info: RunnerInfo, step_time: StepTime, clock: VirtualClock) -> None:
        self._info = info
        self._step_time = step_time
        self._clock = clock
        self._num_computed: dict[int, int] = {}  # by row
        self._results: deque[tuple[float, StepResult]] = deque()  # with the moment when each is ready
        self._free_from_s = 0.0
        self.busy_s = 0.0

    def load(self) -> RunnerInfo:
        return self._info

    def launch(self, step: StepInput) -> None:
        for new in step.new_rows:
            self._num_computed[new.row] = new.num_computed
        num_decoding = num_pairs = 0
        computed = self._num_computed
        for row, count, samples in zip(step.rows, step.num_tokens, step.samples, strict=True):
            computed[row] = end = computed[row] + count
            num_decoding += samples and count == 1
            num_pairs += count * end
        duration_s = self._step_time.predict_s(sum(step.num_tokens), num_decoding, num_pairs)
        self._free_from_s = max(self._free_from_s, self._clock.now_s) + duration_s
        self.busy_s += duration_s
        result = StepResult(step.step_id, [[END_ID] if samples else [] for samples in step.samples], duration_s)
        result.pooled = {b: b"" for b, samples in enumerate(step.samples) if not samples}
        self._results.append((self._free_from_s, result))

    def provide_masks(self, step_id: int, masks: Any) -> None:
        raise AssertionError("a simulated sequence has no grammar")

    def collect(self) -> StepResult:
        ready_s, result = self._results.popleft()
        self._clock.wait_until(ready_s)
        return result

    def close(self) -> None:
        self._results.clear()
