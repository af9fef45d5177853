"""A step between its launch and its harvest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from plugserve.backends.torch.runner.device_state import StepTensors
from plugserve.backends.torch.runner.speculator import DraftedStep
from plugserve.core.contracts.runner import StepInput, StepResult
from plugserve.core.contracts.sampling import TokenLogprobs

if TYPE_CHECKING:
    from plugserve.backends.torch.runner.cuda_graphs import Replayed


@dataclass(slots=True)
class RunningStep:
    """A step between launch and collect. sampling are the batch rows that draw, index the same on the device;
    replayed: its forward pass was a captured one; drafted: some row speculates. drawn comes back through page-locked
    memory, done says when."""

    step: StepInput
    harvest: StepResult = field(init=False)
    result: StepResult | None = None
    sampling: list[int] = field(default_factory=list)
    index: torch.Tensor | None = None
    tensors: StepTensors | None = None
    logits: torch.Tensor | None = None
    replayed: Replayed | None = None
    drafted: DraftedStep | None = None
    drawn: torch.Tensor | None = None
    logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    started: torch.cuda.Event | None = None
    done: torch.cuda.Event | None = None

    def __post_init__(self) -> None:
        self.harvest = StepResult(step_id=self.step.step_id, tokens=[[] for _ in self.step.rows])

    def take(self, drawn: torch.Tensor) -> None:
        """Keep drawn [S], which a later step may overwrite."""
        if drawn.device.type == "cuda":
            self.drawn = torch.empty(drawn.shape, dtype=drawn.dtype, pin_memory=True)
            self.drawn.copy_(drawn, non_blocking=True)
            self.done = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self.done.record()
        else:
            self.drawn = drawn

    def tokens(self) -> list[int]:
        """Wait for drawn."""
        if self.done is not None:
            self.done.synchronize()
        assert self.drawn is not None
        return self.drawn.tolist()

    def seconds(self) -> float:
        """How long the device took; 0 on a CPU."""
        return self.started.elapsed_time(self.done) / 1e3 if self.started is not None and self.done is not None else 0.0


def failure_of(step: StepInput, message: str) -> StepResult:
    everyone = range(len(step.rows))
    return StepResult(step_id=step.step_id, tokens=[[] for _ in everyone], failed=dict.fromkeys(everyone, message))
