"""A ModelRunner over a backend that brings only forward passes: rows, draws and results are core's, in numpy.

Steps run on a thread of their own: launch returns at once and the engine plans step N + 1 while N computes (a forward
pass should release the interpreter lock). Torch-free.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import Any

from plugserve.core.contracts.forward_pass import ForwardPass
from plugserve.core.contracts.runner import RunnerInfo, StepInput, StepResult
from plugserve.core.rows.host_rows import HostRows
from plugserve.core.rows.host_step import HostSteps


class HostRunner:
    """Runs forward for at most num_rows sequences at a time."""

    owns_attention = True

    def __init__(self, forward: ForwardPass, num_rows: int) -> None:
        self._forward = forward
        self._num_rows = num_rows
        self._launched: SimpleQueue[StepInput | None] = SimpleQueue()
        self._masks: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        self._results: SimpleQueue[StepResult] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def load(self) -> RunnerInfo:
        info = self._forward.load()
        rows = HostRows(self._num_rows, info.max_model_len, info.block_size, info.vocab_size)
        steps = HostSteps(self._forward, rows, self._wait_for_masks)
        self._thread = threading.Thread(target=self._run, args=(steps,), name="host-runner", daemon=True)
        self._thread.start()
        return info

    def launch(self, step: StepInput) -> None:
        self._launched.put(step)

    def provide_masks(self, step_id: int, masks: Any) -> None:
        self._masks.put((step_id, masks))

    def collect(self) -> StepResult:
        return self._results.get()

    def close(self) -> None:
        if self._thread is not None:
            self._launched.put(None)
            self._thread.join()
        self._forward.close()

    def _run(self, steps: HostSteps) -> None:
        while (step := self._launched.get()) is not None:
            self._results.put(steps.run(step))

    def _wait_for_masks(self, step: StepInput) -> Any:
        """The engine makes them during the forward pass."""
        step_id, masks = self._masks.get()
        while step_id != step.step_id:  # masks of a step that failed before it waited for them
            step_id, masks = self._masks.get()
        return masks
