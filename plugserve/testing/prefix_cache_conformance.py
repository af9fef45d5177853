"""Pytest cases for prefix caches: subclass PrefixCacheConformance and override make_prefix_cache.

Some cases compare the index alone with a reference model. The others run it in the real engine, on a fake runner whose
values depend on all tokens before them, and count cached tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from plugserve.core.contracts.prefix_cache import PrefixCache
from plugserve.core.wire.block_hash import hash_blocks, hash_salt
from plugserve.testing.engine_driver import EngineDriver
from plugserve.testing.plain_scheduler import PlainScheduler

BLOCK_SIZE = 16
BOTH_WAYS = pytest.mark.parametrize("hashes_prompts", [False, True])  # hashed by the engine, by the server


def chain(seed: int, num_blocks: int) -> list[bytes]:
    """Hashes of a prompt of num_blocks full blocks."""
    return hash_blocks(hash_salt(f"chain {seed}"), range(num_blocks), 1)


class PrefixCacheConformance:
    """Subclass it, name the subclass Test..., and override make_prefix_cache."""

    def make_prefix_cache(self) -> PrefixCache:
        """Returns a new, empty prefix cache, as the plugin's factory does."""
        raise NotImplementedError("override make_prefix_cache: return a new prefix cache")

    # ------------------------------------------------ the index alone

    def test_it_is_a_prefix_cache(self) -> None:
        cache = self.make_prefix_cache()
        assert isinstance(cache, PrefixCache), f"{type(cache).__name__} lacks a part of PrefixCache"
        assert cache.num_evictable == 0, "an empty cache can evict nothing"
        assert list(cache.match(chain(0, 3))) == [], "an empty cache matches nothing"

    def test_longest_known_prefix_is_matched(self) -> None:
        cache, hashes = self.make_prefix_cache(), chain(1, 6)
        for block, hash in enumerate(hashes[:4], start=10):
            assert cache.insert(hash, block), "a new hash must be remembered"
        assert list(cache.match(hashes)) == [10, 11, 12, 13]
        assert list(cache.match(hashes[:2])) == [10, 11], "no more blocks than were asked for"
        assert list(cache.match([])) == []
        assert list(cache.match(chain(2, 4))) == [], "hashes of another prompt"

    def test_a_prefix_ends_where_a_block_is_missing(self) -> None:
        cache, hashes = self.make_prefix_cache(), chain(3, 5)
        for block in (0, 1, 3, 4):
            cache.insert(hashes[block], block)
        assert list(cache.match(hashes)) == [0, 1], "what follows a missing block is not part of the prefix"
        assert list(cache.match(hashes[2:])) == [], "a prefix begins with its first block"

    def test_the_whole_hash_counts(self) -> None:
        cache = self.make_prefix_cache()
        hash = chain(4, 1)[0]
        cache.insert(hash, 7)
        for at in range(len(hash)):
            other = hash[:at] + bytes([hash[at] ^ 1]) + hash[at + 1 :]
            assert list(cache.match([other])) == [], f"a hash that differs in byte {at} was matched"

    def test_first_block_of_a_hash_is_kept(self) -> None:
        cache, hash = self.make_prefix_cache(), chain(5, 1)[0]
        assert cache.insert(hash, 1) is True
        assert cache.insert(hash, 2) is False, "insert must return False for a known hash"
        assert cache.holds(1)
        assert not cache.holds(2)
        assert list(cache.match([hash])) == [1]

    def test_only_released_blocks_are_evicted(self) -> None:
        cache, hashes = self.make_prefix_cache(), chain(6, 6)
        for block, hash in enumerate(hashes):
            cache.insert(hash, block)
        assert list(cache.evict(6)) == [], "a block that is in use was evicted"
        for block in (4, 2, 0):
            cache.release(block)
        cache.retain(2)
        assert cache.num_evictable == 2
        assert sorted(cache.evict(6)) == [0, 4], "only blocks 0 and 4 are released and not retained since"
        assert not cache.holds(0)
        assert cache.holds(2)
        assert list(cache.match(hashes)) == [], "the first block was evicted"
        assert cache.num_evictable == 0

    def test_no_more_is_evicted_than_asked_for(self) -> None:
        cache = self.make_prefix_cache()
        for block, hash in enumerate(chain(7, 5)):
            cache.insert(hash, block)
        for block in (4, 3, 2, 1, 0):
            cache.release(block)
        first = list(cache.evict(2))
        assert len(first) == 2
        assert list(cache.evict(0)) == []
        rest = list(cache.evict(9))
        assert sorted(first + rest) == [0, 1, 2, 3, 4], "each block must be evicted once"

    def test_evicted_hash_may_come_back_in_another_block(self) -> None:
        cache, hash = self.make_prefix_cache(), chain(8, 1)[0]
        cache.insert(hash, 3)
        cache.release(3)
        assert list(cache.evict(1)) == [3]
        assert cache.insert(hash, 5) is True
        assert list(cache.match([hash])) == [5]
        assert cache.insert(chain(9, 1)[0], 3) is True, "block 3 may hold another hash now"

    def test_clear_empties_the_index(self) -> None:
        cache, hashes = self.make_prefix_cache(), chain(10, 4)
        for block, hash in enumerate(hashes):
            cache.insert(hash, block)
        cache.release(3)
        cache.release(1)
        assert sorted(cache.clear()) == [1, 3], "clear returns the released blocks, not those in use"
        assert list(cache.match(hashes)) == []
        assert cache.num_evictable == 0
        assert not any(cache.holds(block) for block in range(4))
        assert cache.insert(hashes[0], 2) is True

    @pytest.mark.parametrize("seed", range(4))
    def test_index_stays_consistent_under_random_calls(self, seed: int) -> None:
        """Random calls, compared with a model of the allowed results."""
        draw = random.Random(seed)
        cache, model = self.make_prefix_cache(), _Model()
        chains = [chain(100 + seed * 10 + n, 6) for n in range(4)]
        for _ in range(600):
            model.act(cache, draw, draw.choice(chains))
            assert cache.num_evictable == len(model.released), (
                f"num_evictable is {cache.num_evictable}, {len(model.released)} blocks are released"
            )
            for block in range(model.num_blocks):
                assert cache.holds(block) == (block in model.hash_of), f"holds({block}) is wrong"

    # ------------------------------------------------ in the engine

    def test_equal_prompts_are_computed_once(self) -> None:
        """Lengths on both sides of a block's edge: only whole blocks are shared, and at least one token is computed."""
        for length in (15, 16, 17, 31, 32, 33, 40):
            driver = self._drive()
            prompt = _tokens(length, seed=length)
            assert _hits(driver, [prompt, prompt]) == [0, (length - 1) // BLOCK_SIZE * BLOCK_SIZE], f"{length} tokens"

    @BOTH_WAYS
    def test_partly_equal_prompts_share_whole_blocks(self, hashes_prompts: bool) -> None:
        for shared in (15, 16, 24, 31, 32, 47):
            driver, common = self._drive(hashes_prompts=hashes_prompts), _tokens(shared, seed=1)
            prompts = [common + _tokens(30, seed=2), common + _tokens(30, seed=3)]
            assert _hits(driver, prompts) == [0, shared // BLOCK_SIZE * BLOCK_SIZE], f"{shared} tokens in common"

    @BOTH_WAYS
    def test_a_block_matches_only_after_the_same_prefix(self, hashes_prompts: bool) -> None:
        """The same block of tokens has other keys and values after another prefix."""
        one, two, same = _tokens(16, seed=4), _tokens(16, seed=5), _tokens(16, seed=6)
        end = _tokens(4, seed=7)
        driver = self._drive(hashes_prompts=hashes_prompts)
        assert _hits(driver, [one + same + end, two + end, two + same + end]) == [0, 0, 16]
        driver = self._drive(hashes_prompts=hashes_prompts)
        assert _hits(driver, [one + same + end, same + end]) == [0, 0], (
            "a block from the middle of a prompt is not a prefix"
        )

    @BOTH_WAYS
    def test_requests_with_different_salts_share_nothing(self, hashes_prompts: bool) -> None:
        driver, prompt = self._drive(hashes_prompts=hashes_prompts), _tokens(40, seed=8)
        hits = [_hits(driver, [prompt], cache_salt=salt)[0] for salt in ("", "ada", "bob", "ada", "", "bob")]
        assert hits == [0, 0, 0, 32, 32, 32], f"cached tokens by salt: {hits}"

    def test_generated_tokens_can_be_reused(self) -> None:
        driver, prompt = self._drive(), _tokens(20, seed=9)
        _hits(driver, [prompt], max_tokens=30)
        follow_up = prompt + driver.requests[0].tokens + _tokens(5, seed=10)
        assert _hits(driver, [follow_up]) == [48]

    @pytest.mark.parametrize("num_blocks", [6, 9, 14, 30])
    @pytest.mark.parametrize("num_host_slots", [0, 8, 200])
    def test_tokens_are_correct_when_memory_is_short(self, num_blocks: int, num_host_slots: int) -> None:
        """With host memory, evicted blocks and those of preempted requests come back from there."""
        driver = self._drive(num_blocks=num_blocks, num_host_slots=num_host_slots)
        draw = random.Random(num_blocks)
        beginnings = [_tokens(33, seed=20 + n) for n in range(4)]
        for n in range(40):
            begin = draw.choice(beginnings)[: draw.choice([16, 20, 32, 33])]
            driver.send(begin + _tokens(draw.randint(1, 20), seed=50 + n), draw.randint(1, 25))
            for _ in range(draw.choice([0, 1, 8])):
                driver.step()
            if draw.random() < 0.15:
                driver.abort(draw.choice([m for m, one in enumerate(driver.requests) if not one.is_done] or [n]))
        driver.run()
        driver.assert_exact()
        driver.assert_all_memory_is_back()

    def test_clearing_while_requests_run_keeps_their_tokens(self) -> None:
        driver, prompt = self._drive(), _tokens(40, seed=11)
        driver.send(prompt, 20)
        for _ in range(6):
            driver.step()
        driver.engine.kv.pool.clear_index()
        driver.send(prompt, 20)
        driver.run()
        driver.assert_exact()
        driver.assert_all_memory_is_back()

    # ------------------------------------------------ helpers

    def _drive(self, *, num_blocks: int = 64, num_host_slots: int = 0, hashes_prompts: bool = False) -> EngineDriver:
        return EngineDriver(
            PlainScheduler(),
            prefix_cache=self.make_prefix_cache(),
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            num_host_slots=num_host_slots,
            hashes_prompts=hashes_prompts,
        )


class _Model:
    """The allowed results of a prefix cache: hashes by block, and the released blocks."""

    num_blocks = 12

    def __init__(self) -> None:
        self.hash_of: dict[int, bytes] = {}
        self.released: set[int] = set()

    def act(self, cache: PrefixCache, draw: random.Random, hashes: Sequence[bytes]) -> None:
        """One random call that the engine could make, with a check of its result."""
        in_use = sorted(set(self.hash_of) - self.released)
        action = draw.choice(["insert", "insert", "match", "release", "release", "retain", "evict", "clear"])
        if action == "insert":
            self._insert(cache, draw, draw.choice(hashes))
        elif action == "match":
            self._match(cache, hashes)
        elif action == "release" and in_use:
            block = draw.choice(in_use)
            cache.release(block)
            self.released.add(block)
        elif action == "retain" and self.released:
            block = draw.choice(sorted(self.released))
            cache.retain(block)
            self.released.discard(block)
        elif action == "evict":
            self._evict(cache, draw.randint(0, 3))
        elif action == "clear" and draw.random() < 0.1:
            assert set(cache.clear()) == self.released, "clear must return the released blocks"
            self.hash_of, self.released = {}, set()

    def _insert(self, cache: PrefixCache, draw: random.Random, hash: bytes) -> None:
        unused = [block for block in range(self.num_blocks) if block not in self.hash_of]
        if unused:
            block, is_new = draw.choice(unused), hash not in self.hash_of.values()
            assert cache.insert(hash, block) == is_new, f"insert must return {is_new} here"
            if is_new:
                self.hash_of[block] = hash

    def _match(self, cache: PrefixCache, hashes: Sequence[bytes]) -> None:
        block_of = {hash: block for block, hash in self.hash_of.items()}
        expected: list[int] = []
        for hash in hashes:
            if hash not in block_of:
                break
            expected.append(block_of[hash])
        assert list(cache.match(hashes)) == expected, "match must return the longest known prefix"

    def _evict(self, cache: PrefixCache, count: int) -> None:
        evicted = list(cache.evict(count))
        assert len(evicted) == min(count, len(self.released)), f"evict({count}) returned {len(evicted)} blocks"
        assert len(set(evicted)) == len(evicted), "evict returned a block twice"
        assert set(evicted) <= self.released, "evict returned a block that is in use"
        for block in evicted:
            del self.hash_of[block]
            self.released.discard(block)


def _tokens(count: int, *, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(1000) for _ in range(count)]


def _hits(driver: EngineDriver, prompts: list[list[int]], *, max_tokens: int = 4, cache_salt: str = "") -> list[int]:
    """Run prompts one after another, check their tokens, and return each one's number of cached tokens."""
    hits = []
    for prompt in prompts:
        number = driver.send(prompt, max_tokens, cache_salt=cache_salt)
        driver.run()
        driver.assert_exact([number])
        hits.append(driver.requests[number].num_cached_tokens)
    driver.assert_all_memory_is_back()
    return hits
