"""What a preempted sequence keeps in host memory, and where a sequence starts from that may have been preempted."""

from __future__ import annotations

from dataclasses import dataclass, field

from plugserve.core.engine.kv.kv_manager import SequencePrefix


@dataclass(slots=True, eq=False)
class SwappedBlocks:
    """slots hold num_tokens computed tokens of a sequence, from its block first_block on; its blocks before that are
    found by their hashes, which are pinned in host memory. is_in_flight: the step that copies them out is launched and
    not collected, so that the copies may still fail."""

    first_block: int
    slots: list[int]
    num_tokens: int
    pinned: list[bytes] = field(default_factory=list)
    is_in_flight: bool = False

    def take(self) -> list[int]:
        """The slots, which it no longer has."""
        taken, self.slots, self.num_tokens = self.slots, [], 0
        return taken


class SwapPrefix(SequencePrefix):
    """A sequence starts from what it left in host memory when it was preempted. swapped is None for one that wasn't, or
    that runs."""

    __slots__ = ("swapped",)

    def __init__(self) -> None:
        self.swapped: SwappedBlocks | None = None

    def num_swapped_tokens(self, num_blocks: int) -> int:
        """Computed tokens in host slots of its own that follow its first num_blocks blocks."""
        swapped = self.swapped
        return swapped.num_tokens if swapped is not None and swapped.first_block == num_blocks else 0

    @property
    def is_on_its_way_out(self) -> bool:
        """It may not start yet."""
        return self.swapped is not None and self.swapped.is_in_flight

    def num_uncached(self, num_tokens: int) -> int:
        return 0 if self.is_on_its_way_out else num_tokens - self.num_swapped_tokens(0)

    def num_new_blocks(self, num_tokens: int, block_size: int) -> int:
        return -(-(self.num_swapped_tokens(0) + num_tokens) // block_size)
