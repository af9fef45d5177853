"""KV blocks that outlive their sequence: a prefix cache's index, host memory below it, prefixes being computed now.

Blocks that fill up are remembered by hash. What the index evicts moves to host memory, where there is some, and comes
back when it is matched again. A preempted sequence's full blocks are kept there by hash, too, so that a beginning that
others share is copied once; only the last block, which is not full, has a host slot of its own.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import replace

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.contracts.prefix_cache import PrefixCache
from plugserve.core.contracts.runner import RunnerInfo
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.engine.kv.block_pool import BlockPool
from plugserve.core.engine.kv.cached_prefix import CachedPrefix
from plugserve.core.engine.kv.host_cache_index import HostCacheIndex
from plugserve.core.engine.kv.host_slots import HostSlots
from plugserve.core.engine.kv.kv_manager import NO_COPIES, NO_PREFIX, BlockHolder, KVCopies, SequencePrefix
from plugserve.core.engine.kv.shared_prefixes import SharedPrefixes
from plugserve.core.engine.kv.swapped_blocks import SwappedBlocks
from plugserve.core.engine.kv.swapping_kv_manager import SwappingKVManager
from plugserve.core.wire.block_hash import HASH_BYTES, adapter_key, salt_of


class CachingKVManager(SwappingKVManager):
    """SwappingKVManager over index. cache_salt is the model's part of the salt of block hashes."""

    def __init__(self, info: RunnerInfo, stats: EngineStats, index: PrefixCache, cache_salt: str) -> None:
        slots = HostSlots(info.num_host_slots)
        self._host_index = HostCacheIndex(slots)
        super().__init__(
            info, stats, slots, BlockPool(info.num_blocks, index, self._host_index if info.num_host_slots else None)
        )
        self._cache_salt = cache_salt
        self._shared_prefixes = SharedPrefixes()

    def prefix(
        self, tokens: array[int], params: SamplingParams, *, block_hashes: bytes, adapter_id: int, cache_salt: str
    ) -> SequencePrefix:
        if params.pooling:
            return NO_PREFIX
        is_complete = len(block_hashes) == len(tokens) // self.block_size * HASH_BYTES
        return CachedPrefix(
            self.pool,
            self._shared_prefixes,
            tokens,
            block_size=self.block_size,
            salt=salt_of(self._cache_salt, adapter_key(adapter_id), cache_salt),
            prompt_hashes=block_hashes if is_complete else b"",
            is_read=params.num_prompt_logprobs is None,
        )

    def claim(self, sequence: BlockHolder) -> None:
        prefix = sequence.prefix
        matched = prefix.match()
        if matched:
            self.pool.share(matched)
            sequence.blocks = list(matched)
        if isinstance(prefix, CachedPrefix) and prefix.slots:
            self.host_slots.hold(prefix.slots)

    def start(self, sequence: BlockHolder) -> None:
        prefix = sequence.prefix
        if not isinstance(prefix, CachedPrefix):
            return
        prefix.num_remembered = len(sequence.blocks)
        if prefix.slots:
            self._restore(sequence, prefix)
        sequence.num_computed = len(sequence.blocks) * self.block_size
        super().start(sequence)
        if sequence.first_scheduled_s is None:
            sequence.num_cached_tokens = sequence.num_computed
            if prefix.is_read:
                self._stats.num_prefix_queried_tokens += sequence.num_prompt_tokens
                self._stats.num_prefix_hit_tokens += sequence.num_computed
                self._stats.num_prefix_hit_tokens_host += len(prefix.slots) * self.block_size
        prefix.extend_hashes()
        self._shared_prefixes.add(sequence)

    def _restore(self, sequence: BlockHolder, prefix: CachedPrefix) -> None:
        """Allocate blocks for the part of a prefix that is in host memory. They are indexed when their step is
        collected."""
        slots, start = prefix.slots, len(sequence.blocks)
        self._host_index.touch(prefix.hashes[start : start + len(slots)])
        restored = self.pool.allocate(len(slots))
        for slot, block in zip(slots, restored, strict=True):
            self.host_slots.copy_in(slot, block)
        if prefix.swapped is not None:
            self._stats.num_swapped_in_blocks += len(slots)
        sequence.blocks = sequence.blocks + restored

    def _copy_out(self, sequence: BlockHolder) -> SwappedBlocks | None:
        prefix, index = sequence.prefix, self._host_index
        if not isinstance(prefix, CachedPrefix):
            return None
        prefix.extend_hashes()
        num_full = sequence.num_computed // self.block_size if prefix.is_read else 0
        hashes = prefix.hashes[:num_full]
        if not index.has_room(hashes, self._num_computed_blocks(sequence) - num_full):
            return None
        self.pool.version += 1  # what others have matched in host memory may make room
        if not index.pin(hashes, sequence.blocks):
            return None
        swapped = self._copy_to_own_slots(sequence, num_full)
        if swapped is None:
            index.unpin(hashes)
        else:
            swapped.pinned = hashes
        return swapped

    def _allocate_slot(self) -> int | None:
        return self._host_index.allocate()

    def _drop(self, swapped: SwappedBlocks) -> None:
        super()._drop(swapped)
        self._host_index.unpin(swapped.pinned)

    def stop(self, sequence: BlockHolder) -> None:
        self._shared_prefixes.remove(sequence.id)

    def note_computed(self, sequences: Iterable[BlockHolder]) -> None:
        for sequence in sequences:
            if not sequence.is_finished:
                self._remember(sequence)

    def _remember(self, sequence: BlockHolder) -> None:
        """Put the blocks that filled up into the index, so that later requests can share them."""
        prefix = sequence.prefix
        num_full = min(sequence.num_computed // self.block_size, len(sequence.blocks))
        if isinstance(prefix, CachedPrefix) and num_full > prefix.num_remembered:
            prefix.extend_hashes()
            for i in range(prefix.num_remembered, num_full):
                self.pool.remember(prefix.hashes[i], sequence.blocks[i])
            prefix.num_remembered = num_full
            self._shared_prefixes.update(sequence)

    def take_copies(self) -> KVCopies:
        copies = super().take_copies()
        return copies if copies is NO_COPIES else replace(copies, arrivals=self._host_index.take_queued())

    def settle_copies(self, copies: KVCopies, *, has_failed: bool) -> None:
        super().settle_copies(copies, has_failed=has_failed)
        if not copies.arrivals:
            return
        if has_failed:
            self._host_index.lost(copies.arrivals)
        else:
            self._host_index.arrived(copies.arrivals)
            self.pool.version += 1

    def _check_host(self, swapped: list[SwappedBlocks]) -> None:
        self._host_index.check_integrity(
            [slot for one in swapped for slot in one.slots], [hash for one in swapped for hash in one.pinned]
        )
