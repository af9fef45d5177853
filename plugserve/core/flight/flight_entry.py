"""A request's place in the flight recorder's file, and what the engine's own objects don't keep of its life."""

from __future__ import annotations

from array import array
from typing import Final

NO_SLOT: Final = -1


class FlightEntry:
    """tokens are the sequence's own, which grow. Times are on the engine's clock, 0 for what has not happened."""

    __slots__ = (
        "entered_s", "first_step", "first_token_s", "num_beside", "num_cached_tokens", "num_no_blocks", "num_no_rows",
        "num_preemptions", "num_prompt_tokens", "ordinal", "ready_s", "scheduled_s", "serial", "slot", "tokens",
    )  # fmt: skip

    def __init__(self, ordinal: int, slot: int, tokens: array[int]) -> None:
        self.ordinal = ordinal
        self.slot = slot
        self.serial = 0
        self.tokens = tokens
        self.num_prompt_tokens = len(tokens)
        self.ready_s = self.entered_s = self.scheduled_s = self.first_token_s = 0.0
        self.first_step = self.num_cached_tokens = self.num_preemptions = 0
        self.num_beside = self.num_no_blocks = self.num_no_rows = 0

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens


NO_ENTRY: Final = FlightEntry(0, NO_SLOT, array("i"))
"""Of requests that are not recorded."""
