"""Blocks that leave the device for host memory and come back: slots, the index, and exact tokens in the engine."""

from __future__ import annotations

import random
from array import array

import pytest

from plugserve.core.contracts.runner import StepResult
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.engine.kv.block_pool import BlockPool, IntegrityError
from plugserve.core.engine.kv.host_cache_index import HostCacheIndex
from plugserve.core.engine.kv.host_slots import HostSlots
from plugserve.core.wire.messages import FINISH_ERROR
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from plugserve.testing.fake_runner import expected_tokens
from tests.core.engine.test_engine import WORKER, Client, assert_all_exact, make_engine

# ---------------------------------------------------------------- slots


def test_used_slots_are_given_out_again_before_fresh_ones():
    slots = HostSlots(8)
    first, second = slots.allocate(), slots.allocate()
    slots.free(first)
    assert slots.allocate() == first
    assert (second, slots.num_used) == (1, 2)


def test_full_tier_gives_none():
    slots = HostSlots(2)
    assert [slots.allocate() for _ in range(3)] == [0, 1, None]
    assert HostSlots(0).allocate() is None


def test_slot_that_is_to_be_copied_in_is_not_reused_in_the_same_step():
    slots = HostSlots(1)
    slot = slots.allocate()
    slots.copy_in(slot, 5)
    slots.free(slot)
    assert slots.allocate() is None
    assert slots.take_copies() == ([], [(slot, 5)])
    assert slots.allocate() == slot


def test_copies_leave_once_and_in_order():
    slots = HostSlots(4)
    slots.copy_out(7, 0)
    slots.copy_out(8, 1)
    slots.copy_in(2, 9)
    assert slots.take_copies() == ([(7, 0), (8, 1)], [(2, 9)])
    assert slots.take_copies() == ([], [])


def test_lost_and_doubled_slots_are_noticed():
    slots = HostSlots(4)
    slot = slots.allocate()
    with pytest.raises(IntegrityError, match="don't add up"):
        slots.check_integrity([])
    slots.check_integrity([slot])
    slots.free(slot)
    with pytest.raises(IntegrityError, match="don't add up"):
        slots.check_integrity([slot])


# ---------------------------------------------------------------- the index


def index_of(num_slots):
    index = HostCacheIndex(HostSlots(num_slots))
    return index, index.slots


def leave(index):
    """The step that carries the queued copies, collected at once."""
    index.slots.take_copies()
    index.arrived(index.take_queued())
    index.check_integrity()


def test_block_is_found_once_its_copy_is_collected():
    index, _ = index_of(4)
    index.keep(b"a", 3)
    assert index.match([b"a"]) == []
    leave(index)
    assert index.match([b"a", b"b"]) == [0]


def test_block_whose_step_failed_is_not_found():
    index, slots = index_of(4)
    index.keep(b"a", 3)
    slots.take_copies()
    index.lost(index.take_queued())
    index.check_integrity()
    assert index.match([b"a"]) == []
    assert slots.num_used == 0


def test_least_recently_used_entry_makes_room():
    index, _ = index_of(2)
    for hash in (b"a", b"b"):
        index.keep(hash, 0)
        leave(index)
    index.touch([b"a"])
    index.keep(b"c", 1)
    leave(index)
    assert [len(index.match([hash])) for hash in (b"a", b"b", b"c")] == [1, 0, 1]


def test_entry_that_comes_back_is_not_copied_out_twice():
    index, slots = index_of(2)
    index.keep(b"a", 0)
    leave(index)
    index.keep(b"a", 1)
    assert slots.take_copies() == ([], [])


def test_entry_that_is_copied_in_does_not_make_room():
    index, slots = index_of(1)
    index.keep(b"a", 0)
    leave(index)
    slots.hold(index.match([b"a"]))
    index.keep(b"b", 1)
    assert slots.take_copies() == ([], [])
    assert index.match([b"a"]) == [0]


def test_cleared_index_forgets_what_is_under_way_too():
    index, slots = index_of(4)
    index.keep(b"a", 0)
    leave(index)
    index.keep(b"b", 1)
    queued = index.take_queued()
    index.clear()
    index.arrived(queued)
    index.check_integrity()
    assert (index.match([b"a"]), index.match([b"b"]), slots.num_used) == ([], [], 0)


def test_pool_hands_evicted_blocks_to_the_index_end_of_prefix_first():
    index, slots = index_of(8)
    pool = BlockPool(4, BlockHashCache(), index)
    blocks = pool.allocate(4)
    hashes = [bytes([n]) * 16 for n in range(4)]
    for hash, block in zip(hashes, blocks, strict=True):
        pool.remember(hash, block)
    pool.free(reversed(blocks))
    pool.allocate(3)
    assert [block for block, _ in slots.take_copies()[0]] == blocks[:0:-1]
    index.arrived(index.take_queued())
    assert pool.match(hashes) == blocks[:1]
    assert len(pool.match_host(hashes[1:])) == 3
    pool.clear_index()
    assert pool.match_host(hashes[1:]) == []


# ---------------------------------------------------------------- the engine


def tiered_engine(**options):
    engine, fake = make_engine(prefix_cache=BlockHashCache(), **options)
    return engine, fake, Client(engine)


def test_evicted_blocks_come_back_and_give_equal_tokens():
    stems = [[stem] * 100 for stem in range(4)]  # six full blocks each, 24 in all
    engine, fake, client = tiered_engine(num_blocks=10, num_host_slots=40)
    for id, stem in enumerate(stems * 2):
        fake.num_launched_tokens.clear()
        client.send(id, [*stem, id], 8)
        client.run()
        assert client.tokens[id] == expected_tokens([*stem, id], 8)
        assert client.started[id][1] == (96 if id >= 4 else 0)
        assert sum(fake.num_launched_tokens) == 101 - client.started[id][1] + 7
    stats = engine.snapshot()
    assert stats.num_prefix_hit_tokens == 4 * 96
    assert 0 < stats.num_prefix_hit_tokens_host <= 4 * 96
    assert stats.num_used_host_blocks > 0
    assert engine.kv.num_free == 10


def test_restored_blocks_are_found_on_the_device_afterwards():
    engine, _, client = tiered_engine(num_blocks=10, num_host_slots=40)
    for id, stem in enumerate((1, 2, 1, 1)):
        client.send(id, [stem] * 100, 8)
        client.run()
    assert [client.started[id][1] for id in range(4)] == [0, 0, 96, 96]
    in_all, on_host = engine.snapshot().num_prefix_hit_tokens, engine.snapshot().num_prefix_hit_tokens_host
    assert in_all == 192
    assert 0 < on_host <= 96
    assert engine.kv.host_slots.num_copied_in == on_host // 16


def test_without_slots_evicted_blocks_are_computed_anew():
    stems = [[stem] * 100 for stem in range(4)]
    engine, _, client = tiered_engine(num_blocks=10)
    for id, stem in enumerate(stems * 2):
        client.send(id, [*stem, id], 8)
        client.run()
    assert engine.snapshot().num_prefix_hit_tokens == 0
    assert_all_exact(client, [[*stem, id] for id, stem in enumerate(stems * 2)], 8)


def test_step_that_fails_keeps_nothing_of_what_it_copied():
    engine, fake, client = tiered_engine(num_blocks=8, num_host_slots=40)
    client.send(0, [1] * 100, 4)
    client.run()
    collect = fake.collect

    def failing():
        result = collect()
        return StepResult(result.step_id, result.tokens, failed=dict.fromkeys(range(len(result.tokens)), "oops"))

    fake.collect = failing
    client.send(1, [2] * 60, 4)
    client.run()
    assert client.finish[1] == FINISH_ERROR
    fake.collect = collect
    assert engine.snapshot().num_used_host_blocks == 0
    client.send(2, [1] * 100, 4)
    client.run()
    assert client.tokens[2] == expected_tokens([1] * 100, 4)
    assert engine.kv.num_free == 8


@pytest.mark.parametrize("num_host_slots", [0, 1, 5, 200])
@pytest.mark.parametrize("tokens", [7, 40, 500])
def test_random_traffic_with_aborts_preemption_and_a_small_tier_stays_exact(tokens, num_host_slots):
    rng = random.Random(num_host_slots * 1000 + tokens)
    stems = [[rng.randrange(1000) for _ in range(rng.randint(40, 80))] for _ in range(5)]
    engine, _, client = tiered_engine(num_blocks=20, num_host_slots=num_host_slots, tokens=tokens, seqs=6)
    prompts, aborted = {}, set()
    for id in range(70):
        prompts[id] = rng.choice(stems)[: rng.randint(20, 80)] + [rng.randrange(1000) for _ in range(rng.randint(1, 9))]
        engine.admit((WORKER, id), array("i", prompts[id]), SamplingParams(max_tokens=40, seed=0))
        for _ in range(rng.randint(0, 9)):
            engine.step()
            client.receive()
            engine.check_integrity()
        if rng.random() < 0.2 and (victim := rng.randrange(id + 1)) not in client.finish:
            engine.abort((WORKER, victim))
            aborted.add(victim)
    client.run()
    for id, prompt in prompts.items():
        got = client.tokens.get(id, [])
        assert got == expected_tokens(prompt, 40)[: len(got) if id in aborted else 40], f"request {id}"
    stats = engine.snapshot()
    assert stats.num_preemptions > 0
    assert stats.num_prefix_hit_tokens > 0
    if num_host_slots != 1:  # one slot is rarely the right one
        assert (stats.num_prefix_hit_tokens_host > 0) == (num_host_slots > 0)
    assert engine.kv.num_free == 20


def test_preempted_sequence_finds_its_own_blocks_on_the_host():
    engine, _, client = tiered_engine(num_blocks=14, num_host_slots=100, tokens=64)
    prompts = [[id] * 60 for id in range(6)]
    for id, prompt in enumerate(prompts):
        client.send(id, prompt, 80)
    client.run()
    assert_all_exact(client, prompts, 80)
    assert engine.stats.num_preemptions > 0
    assert engine.snapshot().num_host_bytes_in == 0  # the fake's blocks have no bytes
    assert engine.kv.host_slots.num_copied_in > 0
