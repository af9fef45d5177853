"""KV blocks that outlive their sequence: a prefix cache's index, host memory below it, prefixes being computed now.

Blocks that fill up are remembered by hash. What the index evicts moves to host memory, where there is some, and comes
back when it is matched again.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.contracts.prefix_cache import PrefixCache
from plugserve.core.contracts.runner import RunnerInfo
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.engine.kv.block_pool import BlockPool
from plugserve.core.engine.kv.cached_prefix import CachedPrefix
from plugserve.core.engine.kv.host_cache_index import HostCacheIndex
from plugserve.core.engine.kv.host_slots import HostSlots
from plugserve.core.engine.kv.kv_manager import NO_COPIES, NO_PREFIX, BlockHolder, KVCopies, KVManager, SequencePrefix
from plugserve.core.engine.kv.shared_prefixes import SharedPrefixes
from plugserve.core.wire.block_hash import HASH_BYTES, adapter_key, salt_of


class CachingKVManager(KVManager):
    """KVManager over index. cache_salt is the model's part of the salt of block hashes."""

    def __init__(self, info: RunnerInfo, stats: EngineStats, index: PrefixCache, cache_salt: str) -> None:
        self.host_slots = HostSlots(info.num_host_slots)
        self._host_index = HostCacheIndex(self.host_slots)
        pool = BlockPool(info.num_blocks, index, self._host_index if info.num_host_slots else None)
        super().__init__(info, stats, pool)
        self._cache_salt = cache_salt
        self._shared_prefixes = SharedPrefixes()
        self._block_bytes = (info.kv_cache_bytes - info.draft_kv_bytes) // max(1, info.num_blocks)

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
        sequence.blocks = sequence.blocks + restored

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
        if not self.host_slots.num_slots:
            return NO_COPIES
        to_host, to_device = self.host_slots.take_copies()
        return KVCopies(to_host, to_device, self._host_index.take_queued())

    def settle_copies(self, copies: KVCopies, *, has_failed: bool) -> None:
        if not copies.arrivals:
            return
        if has_failed:
            self._host_index.lost(copies.arrivals)
        else:
            self._host_index.arrived(copies.arrivals)
            self.pool.version += 1

    def report(self, stats: EngineStats) -> None:
        super().report(stats)
        stats.num_host_blocks = self.host_slots.num_slots
        stats.num_used_host_blocks = self.host_slots.num_used
        stats.num_host_bytes_out = self.host_slots.num_copied_out * self._block_bytes
        stats.num_host_bytes_in = self.host_slots.num_copied_in * self._block_bytes

    def check_integrity(self, holders: Iterable[BlockHolder]) -> None:
        super().check_integrity(holders)
        self._host_index.check_integrity()
