"""Decides when prompts may start and how many of their tokens a step computes: --scheduler-delay-factor and
--max-itl-ms."""

from __future__ import annotations

from dataclasses import dataclass

from plugserve.core.contracts.factories import SchedulerContext
from plugserve.core.contracts.scheduling import StepBudget


@dataclass(frozen=True, slots=True)
class Pace:
    """delay_factor: the next prompt waits this many times the last prompt's latency. max_itl_s: how long a step may
    take while a sequence decodes, None for any time."""

    delay_factor: float = 0.0
    max_itl_s: float | None = None

    @classmethod
    def of(cls, context: SchedulerContext) -> Pace:
        """The pace that the settings describe."""
        settings = context.config
        max_itl_ms = settings.max_itl_ms
        return cls(settings.scheduler_delay_factor, None if max_itl_ms is None else max_itl_ms / 1e3)

    def may_start(self, budget: StepBudget, oldest_arrival_s: float) -> bool:
        """The oldest waiting sequence has waited long enough for a prompt to start beside what runs. Prompts that
        arrive meanwhile start together, in fewer and larger steps."""
        if not self.delay_factor:
            return True
        return budget.now_s - oldest_arrival_s > self.delay_factor * budget.last_prompt_latency_s

    def num_prompt_tokens(self, budget: StepBudget, num_decoding: int, num_context: int, position: int) -> int:
        """Prompt tokens for a step in which num_decoding rows with num_context tokens altogether decode.

        The most that the budget and max_itl_s allow for a prompt that is computed up to position; at least one block
        of tokens, so that a prompt makes progress even if the target can't be met.
        """
        most = max(0, budget.max_num_tokens - num_decoding)
        if self.max_itl_s is None or not num_decoding:
            return most
        least = min(budget.block_size, most)
        low, high = least, most
        while low < high:
            middle = (low + high + 1) // 2
            pairs = num_context + middle * (position + middle)
            if budget.step_time.predict_s(num_decoding + middle, num_decoding, pairs) <= self.max_itl_s:
                low = middle
            else:
                high = middle - 1
        return low
