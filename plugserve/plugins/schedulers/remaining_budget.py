"""What is left of a step's budget while a plan is made. Knows nothing of sequences."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Purse:
    """num_prompt_tokens is the part of num_tokens that prompts may have. num_releasing: blocks on their way back, which
    the next plan can spend."""

    num_tokens: int
    num_prompt_tokens: int
    num_blocks: int
    num_releasing: int

    def pay(self, num_tokens: int, num_blocks: int, *, for_prompt: bool) -> None:
        self.num_tokens -= num_tokens
        self.num_blocks -= num_blocks
        if for_prompt:
            self.num_prompt_tokens -= num_tokens

    def will_have(self, num_blocks: int) -> bool:
        """True when so many blocks are free, or on their way back."""
        return num_blocks <= self.num_blocks + self.num_releasing

    def set_aside(self, num_blocks: int) -> None:
        """Keep blocks for somebody who has to wait for them, so that nobody behind takes them."""
        missing = max(0, num_blocks - self.num_blocks)
        self.num_blocks = max(0, self.num_blocks - num_blocks)
        self.num_releasing = max(0, self.num_releasing - missing)
