"""KV blocks that move to host memory when their sequence is preempted, and back when it runs again.

The copies out leave with the next step, whose runner makes them before it computes; so the blocks are free at once. A
preempted sequence may run again once that step is collected. If no step was launched meanwhile, one step may copy its
blocks out and in.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.contracts.runner import RunnerInfo
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.engine.kv.block_pool import BlockPool
from plugserve.core.engine.kv.host_slots import HostSlots
from plugserve.core.engine.kv.kv_manager import NO_COPIES, NO_PREFIX, BlockHolder, KVCopies, KVManager, SequencePrefix
from plugserve.core.engine.kv.swapped_blocks import SwappedBlocks, SwapPrefix


class SwappingKVManager(KVManager):
    """KVManager with slots in host memory."""

    def __init__(self, info: RunnerInfo, stats: EngineStats, slots: HostSlots, pool: BlockPool | None = None) -> None:
        super().__init__(info, stats, pool)
        self.host_slots = slots
        self._swapped_out: list[SwappedBlocks] = []  # since the last step left
        self._block_bytes = (info.kv_cache_bytes - info.draft_kv_bytes) // max(1, info.num_blocks)

    def prefix(
        self, tokens: array[int], params: SamplingParams, *, block_hashes: bytes, adapter_id: int, cache_salt: str
    ) -> SequencePrefix:
        """Sequences that pool have sums on the device, which are not kept."""
        return NO_PREFIX if params.pooling else SwapPrefix()

    # ---- out

    def swap_out(self, sequence: BlockHolder) -> bool:
        prefix = sequence.prefix
        if not isinstance(prefix, SwapPrefix) or not sequence.num_computed or not self.host_slots.num_slots:
            return False
        num_copied = self.host_slots.num_copied_out
        swapped = self._copy_out(sequence)
        if swapped is None:
            return False
        prefix.swapped = swapped
        self._swapped_out.append(swapped)
        self._stats.num_swap_preemptions += 1
        self._stats.num_swapped_out_blocks += self.host_slots.num_copied_out - num_copied
        return True

    def _copy_out(self, sequence: BlockHolder) -> SwappedBlocks | None:
        """None where host memory has too little room."""
        return self._copy_to_own_slots(sequence, 0) if self._has_room(sequence, 0) else None

    def _has_room(self, sequence: BlockHolder, first_block: int) -> bool:
        return self.host_slots.num_free >= self._num_computed_blocks(sequence) - first_block

    def _num_computed_blocks(self, sequence: BlockHolder) -> int:
        return -(-sequence.num_computed // self.block_size)

    def _copy_to_own_slots(self, sequence: BlockHolder, first_block: int) -> SwappedBlocks | None:
        """Copy out the blocks from first_block on, the last one maybe in part."""
        swapped = SwappedBlocks(first_block, [], sequence.num_computed - first_block * self.block_size)
        for block in sequence.blocks[first_block : self._num_computed_blocks(sequence)]:
            slot = self._allocate_slot()
            if slot is None:
                self._free_slots(swapped)
                return None
            swapped.slots.append(slot)
            self.host_slots.copy_out(block, slot)
        return swapped

    def _allocate_slot(self) -> int | None:
        return self.host_slots.allocate()

    def _free_slots(self, swapped: SwappedBlocks) -> None:
        for slot in swapped.take():
            self.host_slots.free(slot)

    # ---- back in

    def start(self, sequence: BlockHolder) -> None:
        if isinstance(sequence.prefix, SwapPrefix) and sequence.prefix.swapped is not None:
            self._swap_in(sequence, sequence.prefix)

    def _swap_in(self, sequence: BlockHolder, prefix: SwapPrefix) -> None:
        """Give a sequence blocks for what it has in host slots of its own, and copy that in, if it follows the blocks
        that it has already."""
        num_tokens, swapped = prefix.num_swapped_tokens(len(sequence.blocks)), prefix.swapped
        if num_tokens and swapped is not None:
            blocks = self.allocate(len(swapped.slots))
            for slot, block in zip(swapped.slots, blocks, strict=True):
                self.host_slots.copy_in(slot, block)
            self._stats.num_swapped_in_blocks += len(blocks)
            sequence.num_computed = len(sequence.blocks) * self.block_size + num_tokens
            sequence.blocks = sequence.blocks + blocks
        self.drop_swapped(sequence)

    def drop_swapped(self, sequence: BlockHolder) -> None:
        prefix = sequence.prefix
        if isinstance(prefix, SwapPrefix) and prefix.swapped is not None:
            self._drop(prefix.swapped)
            prefix.swapped = None

    def _drop(self, swapped: SwappedBlocks) -> None:
        self._free_slots(swapped)

    # ---- copies

    def take_copies(self) -> KVCopies:
        to_host, to_device = self.host_slots.take_copies()
        if not to_host and not to_device and not self._swapped_out:
            return NO_COPIES
        swapped_out, self._swapped_out = self._swapped_out, []
        for swapped in swapped_out:
            swapped.is_in_flight = True
        return KVCopies(to_host, to_device, swapped_out)

    def settle_copies(self, copies: KVCopies, *, has_failed: bool) -> None:
        for swapped in copies.swapped_out:
            swapped.is_in_flight = False
            if has_failed:
                self._free_slots(swapped)

    # ---- watching

    def report(self, stats: EngineStats) -> None:
        super().report(stats)
        slots = self.host_slots
        stats.num_host_blocks, stats.num_used_host_blocks = slots.num_slots, slots.num_used
        stats.num_host_bytes_out = slots.num_copied_out * self._block_bytes
        stats.num_host_bytes_in = slots.num_copied_in * self._block_bytes

    def check_integrity(self, holders: Collection[BlockHolder]) -> None:
        super().check_integrity(holders)
        self._check_host(swapped_of(holders))

    def _check_host(self, swapped: list[SwappedBlocks]) -> None:
        self.host_slots.check_integrity([slot for one in swapped for slot in one.slots])


def swapped_of(holders: Collection[BlockHolder]) -> list[SwappedBlocks]:
    """What holders have in host memory."""
    prefixes = [holder.prefix for holder in holders]
    return [one.swapped for one in prefixes if isinstance(one, SwapPrefix) and one.swapped is not None]
