"""A step between its launch and its harvest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from plugserve.backends.torch.runner.device_state import StepTensors
from plugserve.backends.torch.runner.speculator import DraftedStep
from plugserve.backends.torch.sampling.sampler import Drawn
from plugserve.core.contracts.runner import StepInput, StepResult

if TYPE_CHECKING:
    from plugserve.backends.torch.runner.cuda_graphs import Replayed


@dataclass(slots=True)
class RunningStep:
    """A step between launch and collect. harvest is filled while it runs; result is set for a step that ended early: it
    failed, or has no rows.

    sampling are the entries that draw, index the same on the device. replayed: its forward pass was a captured one;
    drafted: some row speculates. drawn is by sampling. started and done are events of the device's stream.
    """

    step: StepInput
    harvest: StepResult = field(init=False)
    result: StepResult | None = None
    sampling: list[int] = field(default_factory=list)
    index: torch.Tensor | None = None
    tensors: StepTensors | None = None
    logits: torch.Tensor | None = None
    replayed: Replayed | None = None
    drafted: DraftedStep | None = None
    drawn: Drawn | None = None
    started: torch.cuda.Event | None = None
    done: torch.cuda.Event | None = None

    def __post_init__(self) -> None:
        self.harvest = StepResult(step_id=self.step.step_id, tokens=[[] for _ in self.step.rows])

    @property
    def waits_for_masks(self) -> bool:
        """True while its draw waits for the engine's masks."""
        return bool(self.step.constrained) and self.result is None and self.drawn is None

    def fail(self, message: str) -> None:
        """End the step with all rows failed."""
        entries = range(len(self.step.rows))
        failed = dict.fromkeys(entries, message)
        self.result = StepResult(self.step.step_id, tokens=[[] for _ in entries], failed=failed, has_failed=True)
