"""A step between its launch and its harvest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from plugserve.backends.torch.runner.device_state import StepTensors
from plugserve.backends.torch.runner.speculator import DraftedStep
from plugserve.backends.torch.sampling.logprobs import Logprobs
from plugserve.backends.torch.sampling.sampler import Drawn
from plugserve.core.contracts.runner import StepInput, StepResult

if TYPE_CHECKING:
    from plugserve.backends.torch.runner.cuda_graphs import Replayed


@dataclass(slots=True)
class RunningStep:
    """A step between launch and collect. sampling are the entries that draw, index the same on the device;
    replayed: its forward pass was a captured one; drafted: some row speculates. drawn [S], and the logprobs of those of
    S that want them, come back through page-locked memory once done has passed."""

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
    wanting: list[int] = field(default_factory=list)
    logprobs: Logprobs | None = None
    started: torch.cuda.Event | None = None
    done: torch.cuda.Event | None = None

    def __post_init__(self) -> None:
        self.harvest = StepResult(step_id=self.step.step_id, tokens=[[] for _ in self.step.rows])

    def take(self, tokens: torch.Tensor) -> None:
        """Keep tokens [S], which a later step may overwrite."""
        self.take_drawn(Drawn(tokens, [], None))

    def take_drawn(self, drawn: Drawn) -> None:
        """Keep what was drawn, and the logprobs that are wanted of it."""
        self.drawn, self.wanting, self.logprobs = drawn.tokens, drawn.wanting, drawn.logprobs
        if drawn.tokens.device.type == "cuda":
            self.drawn = _to_host(drawn.tokens)
            self.logprobs = drawn.logprobs.moved(_to_host) if drawn.logprobs is not None else None
            self.done = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self.done.record()

    def tokens(self) -> list[int]:
        """Wait for drawn."""
        if self.done is not None:
            self.done.synchronize()
        assert self.drawn is not None
        return self.drawn.tolist()

    def seconds(self) -> float:
        """How long the device took; 0 on a CPU."""
        return self.started.elapsed_time(self.done) / 1e3 if self.started is not None and self.done is not None else 0.0


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in page-locked memory, complete once the stream gets there."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)


def failure_of(step: StepInput, message: str) -> StepResult:
    everyone = range(len(step.rows))
    return StepResult(step_id=step.step_id, tokens=[[] for _ in everyone], failed=dict.fromkeys(everyone, message))
