"""The remaining budget of a step while its plan is made. Independent of sequences."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class RemainingBudget:
    """num_prompt_tokens is the part of num_tokens that prompts may have. num_releasing: blocks that the step in
    flight gives back, which the next plan can spend."""

    num_tokens: int
    num_prompt_tokens: int
    num_blocks: int
    num_releasing: int

    def spend(self, num_tokens: int, num_blocks: int, *, for_prompt: bool) -> None:
        self.num_tokens -= num_tokens
        self.num_blocks -= num_blocks
        if for_prompt:
            self.num_prompt_tokens -= num_tokens

    def will_have(self, num_blocks: int) -> bool:
        """True when num_blocks are free, or will be once the step in flight is collected."""
        return num_blocks <= self.num_blocks + self.num_releasing

    def reserve(self, num_blocks: int) -> None:
        """Keep num_blocks for a sequence that has to wait for them, so that no later one takes them."""
        missing = max(0, num_blocks - self.num_blocks)
        self.num_blocks = max(0, self.num_blocks - num_blocks)
        self.num_releasing = max(0, self.num_releasing - missing)
