"""The batch of one step in flight: one entry for each scheduled sequence, in columns."""

from __future__ import annotations

from dataclasses import dataclass, field

from plugserve.core.engine.kv.kv_manager import NO_COPIES, KVCopies
from plugserve.core.engine.sequence import Sequence


@dataclass(slots=True)
class Batch:
    """constrained lists the entries whose token masks were not sent yet; num_decoding and num_pairs determine the
    step's time (see StepTime). num_tokens are upper bounds where num_drafts isn't 0, which is empty in a step that
    doesn't speculate."""

    step_id: int
    sequences: list[Sequence] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    samples: list[bool] = field(default_factory=list)
    constrained: list[int] = field(default_factory=list)
    num_drafts: list[int] = field(default_factory=list)
    copies: KVCopies = NO_COPIES
    num_decoding: int = 0
    num_pairs: int = 0

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens that are computed but aren't a sequence's last one."""
        return sum(self.num_tokens) - sum(self.num_drafts) - self.num_decoding
