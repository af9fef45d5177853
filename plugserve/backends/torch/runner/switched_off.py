"""Replacements in the runner for features that are off: the same calls, without effect."""

from __future__ import annotations

from plugserve.backends.torch.models.step_context import NO_LORA, LoraStep
from plugserve.core.contracts.runner import StepInput


class NoAdapterRows:
    """Takes the place of AdapterRows where no LoRA manager is active."""

    def apply(self, step: StepInput) -> None:
        if step.adapters:
            raise AssertionError("an adapter for a runner without a LoRA manager")

    def plan(self, step: StepInput) -> LoraStep:
        return NO_LORA

    def failures(self, step: StepInput) -> dict[int, str]:
        return {}
