"""The KV blocks of sequences: allocated, shared, freed, copied. One interface for all kinds of caching.

KVManager keeps nothing: every sequence computes all of its tokens, and anew after a preemption. SwappingKVManager
(swapping_kv_manager.py) keeps preempted sequences' blocks in host memory. CachingKVManager (caching_kv_manager.py) adds
a prefix cache's index, its evicted blocks in host memory, and prefixes that are being computed.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.contracts.runner import RunnerInfo
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.engine.kv.block_pool import BlockPool

if TYPE_CHECKING:
    from plugserve.core.engine.kv.host_cache_index import Arrival
    from plugserve.core.engine.kv.swapped_blocks import SwappedBlocks


class SequencePrefix:
    """What a waiting sequence can start from, and its part in the prefix cache. Here without either: it starts from
    nothing, and no block is reused or added."""

    __slots__ = ()

    @property
    def hashes(self) -> list[bytes]:
        """The hashes of the sequence's full blocks, in order."""
        return []

    def match(self) -> list[int]:
        """Cached blocks that a waiting sequence would start from; at least one token is always left to compute."""
        return []

    def num_uncached(self, num_tokens: int) -> int:
        """The number of a waiting sequence's num_tokens tokens that must be computed. 0 while another sequence computes
        the same beginning."""
        return num_tokens

    def num_new_blocks(self, num_tokens: int, block_size: int) -> int:
        """Blocks that a waiting sequence takes out of the pool's free count to compute num_tokens tokens."""
        return -(-num_tokens // block_size)

    def set_rope_length(self, rope_length: int) -> None:
        """Set the length of its RoPE frequencies. From now on its keys use the frequencies of rope_length tokens, so
        its block hashes differ from those of other lengths."""

    def reset(self) -> None:
        """The sequence has lost its blocks and waits again."""


NO_PREFIX: Final = SequencePrefix()


class BlockHolder(Protocol):
    """A sequence, as far as its blocks go. is_running: it has a device row."""

    id: int
    blocks: list[int]
    block_size: int
    num_prompt_tokens: int
    num_computed: int
    num_in_flight: int
    num_cached_tokens: int
    first_scheduled_s: float | None
    is_running: bool
    is_finished: bool
    prefix: SequencePrefix

    @property
    def block_hashes(self) -> list[bytes]: ...


@dataclass(frozen=True, slots=True)
class KVCopies:
    """A step's copies before it computes: (block, host slot) pairs out, then (host slot, block) pairs in. swapped_out
    and arrivals are what is in host memory once the step is collected: of preempted sequences, and by hash."""

    to_host: list[tuple[int, int]] = field(default_factory=list)
    to_device: list[tuple[int, int]] = field(default_factory=list)
    swapped_out: list[SwappedBlocks] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)


NO_COPIES: Final = KVCopies()


class KVManager:
    """Owns info.num_blocks blocks. Used from the engine's thread.

    A sequence's blocks change in this order: claim, start, allocate..., release; swap_out comes before release where it
    was preempted. note_computed and settle_copies follow each collected step.
    """

    def __init__(self, info: RunnerInfo, stats: EngineStats, pool: BlockPool | None = None) -> None:
        self.pool = pool if pool is not None else BlockPool(info.num_blocks)
        self.num_blocks = info.num_blocks
        self.block_size = info.block_size
        self.allocate = self.pool.allocate
        self.unshared = self.pool.unshared
        self._stats = stats

    @property
    def num_free(self) -> int:
        """Blocks that allocate can give now."""
        return self.pool.num_free

    def prefix(
        self, tokens: array[int], params: SamplingParams, *, block_hashes: bytes, adapter_id: int, cache_salt: str
    ) -> SequencePrefix:
        """The SequencePrefix of a new sequence of these prompt tokens. block_hashes are those that the server has made
        of it, if any."""
        return NO_PREFIX

    def claim(self, sequence: BlockHolder) -> None:
        """Take the cached blocks that a waiting sequence starts from, before any allocation of this step can evict
        them."""

    def start(self, sequence: BlockHolder) -> None:
        """A sequence whose prefix is claimed is about to run: set what it holds and what of it is computed."""

    def stop(self, sequence: BlockHolder) -> None:
        """Note that it no longer runs; it keeps its blocks until release."""

    def swap_out(self, sequence: BlockHolder) -> bool:
        """Keep what is computed of a preempted sequence in host memory, so that it can start from there; nothing of it
        is in flight. False: it is not kept, and computed anew."""
        return False

    def drop_swapped(self, sequence: BlockHolder) -> None:
        """Forget what host memory keeps of a waiting sequence."""

    def release(self, sequence: BlockHolder) -> None:
        """Free its blocks; nothing of it is in flight."""
        self.pool.free(reversed(sequence.blocks))  # the end of a prefix is evicted before its start
        sequence.blocks = []

    def note_computed(self, sequences: Iterable[BlockHolder]) -> None:
        """A step of sequences is collected: blocks of those that are not finished may have filled up."""

    def num_releasing(self, leaving: Collection[BlockHolder]) -> int:
        """Blocks that become free when the steps in flight of leaving are collected."""
        return sum(len(self.unshared(sequence.blocks)) for sequence in leaving)

    def take_copies(self) -> KVCopies:
        """The copies of the step that is launched now."""
        return NO_COPIES

    def settle_copies(self, copies: KVCopies, *, has_failed: bool) -> None:
        """The step that carried copies is collected. has_failed: the whole step failed, so the copies may not have been
        made."""

    def report(self, stats: EngineStats) -> None:
        """Write the current counts into stats."""
        stats.num_free_blocks = self.pool.num_free

    def check_integrity(self, holders: Collection[BlockHolder]) -> None:
        """Raise IntegrityError unless the blocks of holders, who are all there are, explain every reference."""
        self.pool.check_integrity(sequence.blocks for sequence in holders)
