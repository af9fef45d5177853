"""One sequence's blocks by hash: those it can reuse from the cache, and those it has added to the cache. Torch-free."""

from __future__ import annotations

from array import array

from plugserve.core.engine.kv.block_pool import BlockPool
from plugserve.core.engine.kv.shared_prefixes import PendingPrefix, SharedPrefixes
from plugserve.core.engine.kv.swapped_blocks import SwapPrefix
from plugserve.core.wire.block_hash import hash_block, hash_blocks, hash_salt, split_hashes


class CachedPrefix(SwapPrefix):
    """hashes name the full blocks of tokens, in order; tokens is the sequence's own array, which grows. salt is their
    first link, prompt_hashes those of the prompt where the server has made them. slots are the host slots that hold
    what follows the matched blocks; num_remembered of the sequence's blocks are in the index. is_read: it may start
    from cached blocks (not where every prompt token's logits are wanted; its blocks are remembered all the same)."""

    __slots__ = (
        "_matched",
        "_matched_version",
        "_pending",
        "_pool",
        "_prompt_hashes",
        "_rope_length",
        "_salt",
        "_shared_prefixes",
        "_tokens",
        "block_size",
        "hashes",
        "is_read",
        "num_remembered",
        "slots",
    )

    def __init__(
        self,
        pool: BlockPool,
        shared_prefixes: SharedPrefixes,
        tokens: array[int],
        *,
        block_size: int,
        salt: bytes,
        prompt_hashes: bytes,
        is_read: bool,
    ) -> None:
        super().__init__()
        self.block_size = block_size
        self.is_read = is_read
        self.hashes: list[bytes] = []
        self.slots: list[int] = []
        self.num_remembered = 0
        self._pool = pool
        self._shared_prefixes = shared_prefixes
        self._tokens = tokens
        self._salt = salt
        self._prompt_hashes = prompt_hashes
        self._rope_length = 0
        self._matched: list[int] = []
        self._matched_version = -1
        self._pending: PendingPrefix | None = None

    def match(self) -> list[int]:
        if self.is_read and self._matched_version != self._pool.version:
            self.extend_hashes()
            hashes = self.hashes[: self._num_startable]
            self._matched = self._pool.match(hashes)
            self.slots = self._pool.match_host(hashes[len(self._matched) :])
            self._matched_version = self._pool.version
        return self._matched

    @property
    def _num_startable(self) -> int:
        """Full blocks that leave at least one token to compute."""
        return (len(self._tokens) - 1) // self.block_size

    @property
    def _num_cached_tokens(self) -> int:
        num_blocks = len(self.match()) + len(self.slots)
        return num_blocks * self.block_size + self.num_swapped_tokens(num_blocks)

    def num_uncached(self, num_tokens: int) -> int:
        if self.is_on_its_way_out or self._is_pending:
            return 0
        return num_tokens - self._num_cached_tokens

    def num_new_blocks(self, num_tokens: int, block_size: int) -> int:
        end = self._num_cached_tokens + num_tokens
        matched = self._matched
        return -(-end // block_size) - len(matched) + self._pool.num_unreferenced(matched)

    @property
    def _is_pending(self) -> bool:
        """Another sequence is computing what this one begins with (see shared_prefixes)."""
        if not self.is_read or not self._shared_prefixes.producers:
            return False
        if self._pending is None or not self._pending.is_on_its_way:
            num_known = len(self.match()) + len(self.slots)
            self._pending = self._shared_prefixes.find(self.hashes, num_known, self._num_startable)
        return self._pending is not None

    def extend_hashes(self) -> None:
        """Hash the blocks of tokens that filled up since the last call."""
        tokens, size, hashes = self._tokens, self.block_size, self.hashes
        num_full = len(tokens) // size
        if not hashes and num_full:
            if self._prompt_hashes:
                hashes.extend(split_hashes(self._prompt_hashes))
            else:
                hashes.extend(hash_blocks(self._salt, tokens, size))
        for i in range(len(hashes), num_full):
            hashes.append(hash_block(hashes[-1], tokens[i * size : (i + 1) * size]))

    def set_rope_length(self, rope_length: int) -> None:
        if rope_length != self._rope_length:
            self._rope_length = rope_length
            self._salt = hash_salt(self._salt.hex(), f"rope {rope_length}")
            self._prompt_hashes = b""
            self.hashes = []

    def reset(self) -> None:
        self.num_remembered = 0
        self._matched_version = -1
