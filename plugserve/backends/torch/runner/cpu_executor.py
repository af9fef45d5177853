"""Steps on a CPU, on a thread of their own: launch returns at once and the engine plans step N+1 while N computes
(torch releases the interpreter lock inside its kernels)."""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue
from typing import Any

import torch

from plugserve.backends.torch.runner.running_step import RunningStep
from plugserve.backends.torch.runner.step_runner import StepRunner
from plugserve.core.contracts.runner import StepInput, StepResult


class CpuExecutor:
    """Starts its thread at once."""

    def __init__(self, steps: StepRunner) -> None:
        self._steps = steps
        self._launched: SimpleQueue[StepInput | None] = SimpleQueue()
        self._masks: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        self._results: SimpleQueue[StepResult] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="torch-runner", daemon=True)
        self._thread.start()

    def launch(self, step: StepInput) -> None:
        self._launched.put(step)

    def provide_masks(self, step_id: int, masks: Any) -> None:
        self._masks.put((step_id, masks))

    def collect(self) -> StepResult:
        return self._results.get()

    def close(self) -> None:
        self._launched.put(None)
        self._thread.join()

    def _run(self) -> None:
        with torch.inference_mode():
            while (step := self._launched.get()) is not None:
                started_s = time.perf_counter()
                running = RunningStep(step)
                self._steps.begin(running)
                if running.waits_for_masks:
                    self._steps.sample(running, self._wait_for_masks(step))
                result = self._steps.harvest(running)
                result.duration_s = time.perf_counter() - started_s
                self._results.put(result)

    def _wait_for_masks(self, step: StepInput) -> Any:
        """Wait for the engine's masks, which it makes during the forward pass."""
        step_id, masks = self._masks.get()
        while step_id != step.step_id:  # masks of a step that failed before it waited for them
            step_id, masks = self._masks.get()
        return masks
