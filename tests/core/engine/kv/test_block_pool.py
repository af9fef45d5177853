"""Blocks: references, the free list, sharing through the index, and books that must balance."""

from __future__ import annotations

import random

import pytest

from plugserve.core.engine.kv.block_pool import BlockPool, IntegrityError
from plugserve.core.wire.block_hash import hash_blocks, hash_salt
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache


def test_freed_block_is_reused():
    pool = BlockPool(4)
    blocks = pool.allocate(4)
    assert sorted(blocks) == [0, 1, 2, 3]
    assert pool.num_free == 0
    pool.free([blocks[2]])
    assert pool.allocate(1) == [blocks[2]]


def test_shared_block_is_free_only_when_the_last_holder_lets_go():
    pool = BlockPool(4, BlockHashCache())
    (block,) = pool.allocate(1)
    pool.remember(b"hash", block)
    pool.share([block])
    pool.free([block])
    assert pool.num_free == 3
    pool.check_integrity([[block]])
    pool.free([block])
    assert pool.num_free == 4
    pool.check_integrity([])


def test_freeing_twice_is_noticed():
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    pool.free(blocks)
    with pytest.raises(IntegrityError, match="more often than it was taken"):
        pool.free(blocks)


def test_allocating_more_than_there_is_is_noticed():
    pool = BlockPool(2)
    with pytest.raises(IntegrityError, match="3 blocks asked for, 2 free"):
        pool.allocate(3)


def test_cached_block_is_found_until_memory_runs_short_and_the_oldest_goes_first():
    pool = BlockPool(3, BlockHashCache())
    for name in (b"a", b"b", b"c"):
        (block,) = pool.allocate(1)
        pool.remember(name, block)
        pool.free([block])
    assert pool.num_free == 3
    assert [len(pool.match([name])) for name in (b"a", b"b", b"c")] == [1, 1, 1]
    pool.allocate(1)
    assert [len(pool.match([name])) for name in (b"a", b"b", b"c")] == [0, 1, 1]


@pytest.mark.parametrize(
    "breakage",
    [
        lambda pool: pool._free.append(pool._free[0]),
        lambda pool: pool._free.pop(),
        lambda pool: pool._references.__setitem__(0, 5),
        lambda pool: pool._free.append(0),
    ],
)
def test_integrity_check_sees_broken_books(breakage):
    pool = BlockPool(4)
    held = pool.allocate(1)
    assert held == [0]
    pool.check_integrity([held])
    breakage(pool)
    with pytest.raises(IntegrityError):
        pool.check_integrity([held])


def test_random_use_keeps_the_books_balanced():
    rng = random.Random(0)
    pool, owners = BlockPool(30, BlockHashCache()), []
    for n in range(2000):
        if rng.random() < 0.5 and pool.num_free > 3:
            owners.append(pool.allocate(rng.randint(1, 3)))
            for block in owners[-1]:
                pool.remember(f"{n % 40} {block}".encode(), block)
        elif rng.random() < 0.3:
            found = pool.match([f"{n % 40} {block}".encode() for block in range(30)])
            if found:
                pool.share(found)
                owners.append(found)
        elif owners:
            pool.free(owners.pop(rng.randrange(len(owners))))
        pool.check_integrity(owners)
    pool.clear_index()
    pool.check_integrity(owners)
    for blocks in owners:
        pool.free(blocks)
    assert pool.num_free == 30


def test_hashes_chain_over_parents_and_salt():
    tokens = list(range(64))
    salt = hash_salt("model", "")
    hashes = hash_blocks(salt, tokens, 16)
    assert len(hashes) == len(set(hashes)) == 4
    assert hash_blocks(salt, tokens[:50], 16) == hashes[:3]
    changed = hash_blocks(salt, [99, *tokens[1:]], 16)
    assert not set(changed) & set(hashes)
    assert not set(hash_blocks(hash_salt("model", "tenant"), tokens, 16)) & set(hashes)
    assert hash_salt("ab", "c") != hash_salt("a", "bc")
