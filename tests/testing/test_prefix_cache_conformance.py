"""The conformance kit fails each prefix cache that has a planted bug."""

from __future__ import annotations

import pytest

from plugserve.core.wire.block_hash import hash_block, salt_of
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from plugserve.testing import PrefixCacheConformance
from tests.testing.kit_runner import catches, failures


class TruncatesHashes(BlockHashCache):
    """Compares only the first byte of hashes."""

    def match(self, hashes):
        return super().match([hash[:1] for hash in hashes])

    def insert(self, hash, block):
        return super().insert(hash[:1], block)


class SkipsMissingBlocks(BlockHashCache):
    def match(self, hashes):
        return [self._block_of[hash] for hash in hashes if hash in self._block_of]


class MatchesOneBlockTooMany(BlockHashCache):
    """Also matches the last, partial block of a prompt: the block number that follows."""

    def match(self, hashes):
        blocks = super().match(hashes)
        if blocks and len(blocks) == len(hashes) and self.holds(blocks[-1] + 1):
            blocks.append(blocks[-1] + 1)
        return blocks


class EvictsRetained(BlockHashCache):
    def retain(self, block):
        pass


class EvictsBlocksInUse(BlockHashCache):
    def evict(self, num_blocks):
        for block in list(self._hash_of)[:num_blocks]:
            self._released.setdefault(block)
        return super().evict(num_blocks)


class MatchesEvictedBlocks(BlockHashCache):
    """Matches blocks that it has evicted."""

    def evict(self, num_blocks):
        block_of = dict(self._block_of)
        evicted = super().evict(num_blocks)
        self._block_of = block_of
        return evicted


class ClearsBlocksInUse(BlockHashCache):
    def clear(self):
        super().clear()
        blocks, self._hash_of = list(self._hash_of), {}
        return blocks


class ReplacesTheCachedBlock(BlockHashCache):
    def insert(self, hash, block):
        old = self._block_of.pop(hash, None)
        if old is not None:
            del self._hash_of[old]
        return super().insert(hash, block)


PREFIX_CACHE_BUGS = [
    TruncatesHashes,
    SkipsMissingBlocks,
    MatchesOneBlockTooMany,
    EvictsRetained,
    EvictsBlocksInUse,
    MatchesEvictedBlocks,
    ClearsBlocksInUse,
    ReplacesTheCachedBlock,
]


def prefix_cache_case(cache):
    class Case(PrefixCacheConformance):
        def make_prefix_cache(self):
            return cache()

    return Case


@pytest.mark.parametrize("cache", PREFIX_CACHE_BUGS, ids=lambda cache: cache.__name__)
def test_prefix_cache_bug_is_caught(cache):
    assert catches(prefix_cache_case(cache), "Error")


@pytest.mark.parametrize(
    "where", ["plugserve.core.engine.kv.caching_kv_manager.salt_of", "plugserve.core.wire.block_hash.salt_of"]
)
def test_hashing_without_salt_is_caught(monkeypatch, where):
    """Core hashes prompts, in the engine or in the server; the kit fails when the salt is missing from either hash."""
    monkeypatch.setattr(where, lambda model, adapter="", cache_salt="": salt_of(model, adapter))
    failed = failures(prefix_cache_case(BlockHashCache))
    assert len(failed) == 1
    assert next(iter(failed)).startswith("test_requests_with_different_salts_share_nothing")


def test_hashing_without_parent_is_caught(monkeypatch):
    def blocks_alone(salt, tokens, size):
        return [hash_block(salt, tokens[at : at + size]) for at in range(0, len(tokens) - size + 1, size)]

    for where in ("plugserve.core.engine.kv.cached_prefix.hash_blocks", "plugserve.core.wire.block_hash.hash_blocks"):
        with monkeypatch.context() as patched:
            patched.setattr(where, blocks_alone)
            failed = failures(prefix_cache_case(BlockHashCache))
        assert any(name.startswith("test_a_block_matches_only_after_the_same_prefix") for name in failed)
