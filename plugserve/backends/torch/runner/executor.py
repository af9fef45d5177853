"""The interface of executors: the runner's side of launch, provide_masks and collect."""

from __future__ import annotations

from typing import Any, Protocol

from plugserve.core.contracts.runner import StepInput, StepResult


class Executor(Protocol):
    """Runs a model's steps in order; ModelRunner documents the methods."""

    def launch(self, step: StepInput) -> None:
        """Queue one step."""

    def provide_masks(self, step_id: int, masks: Any) -> None:
        """Token masks for a launched step."""

    def collect(self) -> StepResult:
        """Wait for the oldest launched step."""

    def close(self) -> None:
        """Shut down; nothing may be in flight."""
