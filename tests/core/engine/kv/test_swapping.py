"""Preempted sequences' blocks move to host memory and come back: nothing is computed twice, tokens are exact, and host
slots are accounted for."""

from __future__ import annotations

import random
from array import array

import pytest

from plugserve.core.contracts.runner import StepResult
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.contracts.scheduling import StepPlan
from plugserve.core.engine.kv.block_pool import IntegrityError
from plugserve.core.engine.kv.host_cache_index import HostCacheIndex
from plugserve.core.engine.kv.host_slots import HostSlots
from plugserve.core.wire.messages import FINISH_ERROR
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from plugserve.testing.fake_runner import expected_tokens
from tests.core.engine.test_engine import WORKER, Client, assert_all_exact, make_engine, random_prompts


class Script:
    """A scheduler that runs what plan says: a function of the views by id and the budget, to a StepPlan."""

    def __init__(self, plan):
        self._plan = plan
        self.views = {}

    def add(self, view):
        self.views[view.id] = view

    def remove(self, id):
        self.views.pop(id, None)

    def schedule(self, budget):
        return self._plan(self.views, budget)


def num_needed(prompts, max_tokens):
    """Tokens that must be computed if none is computed twice; the last one of each is never fed back."""
    return sum(len(prompt) + max_tokens - 1 for prompt in prompts)


def run_all(prompts, max_tokens, **options):
    engine, fake = make_engine(**options)
    client = Client(engine)
    for id, prompt in enumerate(prompts):
        client.send(id, prompt, max_tokens)
    client.run()
    assert_all_exact(client, prompts, max_tokens)
    return engine, fake


# ---------------------------------------------------------------- what comes back


@pytest.mark.parametrize("tokens", [16, 32, 500])
def test_preempted_sequences_compute_nothing_twice(tokens):
    prompts = random_prompts(16, 60, seed=1)
    engine, fake = run_all(prompts, 60, num_blocks=14, tokens=tokens, num_host_slots=200)
    assert sum(fake.num_launched_tokens) == num_needed(prompts, 60)
    stats = engine.snapshot()
    assert stats.num_swap_preemptions == stats.num_preemptions > 0
    assert stats.num_swapped_out_blocks == stats.num_swapped_in_blocks > stats.num_preemptions
    assert (stats.num_host_blocks, stats.num_used_host_blocks) == (200, 0)
    assert engine.kv.num_free == 14


def test_without_host_memory_they_are_computed_again():
    prompts = random_prompts(16, 60, seed=1)
    engine, fake = run_all(prompts, 60, num_blocks=14, tokens=32)
    assert sum(fake.num_launched_tokens) > num_needed(prompts, 60)
    stats = engine.snapshot()
    assert stats.num_preemptions > stats.num_swap_preemptions == stats.num_swapped_out_blocks == 0


def test_full_host_memory_lets_the_rest_be_computed_again():
    prompts = random_prompts(16, 60, seed=1)
    engine, fake = run_all(prompts, 60, num_blocks=14, tokens=32, num_host_slots=7)
    stats = engine.snapshot()
    assert 0 < stats.num_swap_preemptions < stats.num_preemptions
    assert sum(fake.num_launched_tokens) > num_needed(prompts, 60)
    assert stats.num_used_host_blocks == 0


def test_with_a_prefix_cache_nothing_is_computed_twice_either():
    """Full blocks come back by hash, from the device or the host, the last one from a slot of its own."""
    prompts = [[id] * 50 for id in range(12)]
    engine, fake = run_all(prompts, 60, num_blocks=14, num_host_slots=300, prefix_cache=BlockHashCache())
    assert sum(fake.num_launched_tokens) == num_needed(prompts, 60)
    stats = engine.snapshot()
    assert stats.num_swap_preemptions == stats.num_preemptions > 0
    assert stats.num_swapped_in_blocks > 0
    assert engine.kv.num_free == 14


@pytest.mark.parametrize("num_computed", [1, 15, 16, 17, 32, 39])
@pytest.mark.parametrize("has_cache", [False, True])
def test_partial_prompt_and_partial_block_come_back(num_computed, has_cache):
    """Preempted in the middle of its prompt, it goes on with the next token."""
    prompt, state = list(range(40)), {"preempted": False}

    def plan(views, budget):
        if 0 not in views or not views[0].num_pending:
            return StepPlan()
        view = views[0]
        if view.is_running and not state["preempted"]:
            state["preempted"] = True
            return StepPlan(preempted=[0])
        return StepPlan(scheduled=[(0, num_computed if not state["preempted"] else view.num_pending)])

    cache = BlockHashCache() if has_cache else None
    engine, fake = make_engine(Script(plan), num_host_slots=10, num_blocks=10, prefix_cache=cache)
    client = Client(engine)
    client.send(0, prompt, 5)
    client.run()
    assert client.tokens[0] == expected_tokens(prompt, 5)
    assert fake.num_launched_tokens[:2] == [num_computed, 40 - num_computed]
    stats = engine.snapshot()
    num_blocks = -(-num_computed // 16)
    assert (stats.num_swap_preemptions, stats.num_swapped_out_blocks) == (1, num_blocks)
    # with a cache the full blocks are still on the device
    assert stats.num_swapped_in_blocks == (int(num_computed % 16 > 0) if has_cache else num_blocks)


def test_sequence_whose_copies_have_not_left_may_come_back_in_the_step_that_carries_them():
    """An empty plan launches nothing: the next step copies out, then in."""
    steps = []

    def plan(views, budget):
        view = views.get(0)
        if view is None or not view.num_pending:
            return StepPlan()
        steps.append(view.is_running)
        return StepPlan(preempted=[0]) if len(steps) == 3 else StepPlan(scheduled=[(0, view.num_pending)])

    engine, fake = make_engine(Script(plan), num_host_slots=10)
    client, launched = Client(engine), []
    launch = fake.launch
    fake.launch = lambda step: (launched.append((step.copy_out, step.copy_in)), launch(step))
    client.send(0, [1] * 20, 6)
    client.run()
    assert client.tokens[0] == expected_tokens([1] * 20, 6)
    (both,) = [copies for copies in launched if copies[0] or copies[1]]
    assert [slot for _, slot in both[0]] == [slot for slot, _ in both[1]] == [0, 1]


def test_common_beginning_is_copied_once():
    stem = [7] * 64
    prompts = [[*stem, id, *range(12)] for id in range(8)]
    engine, fake = run_all(prompts, 70, num_blocks=24, num_host_slots=300, prefix_cache=BlockHashCache(), tokens=500)
    stats = engine.snapshot()
    assert stats.num_swap_preemptions == stats.num_preemptions > 3
    stem_blocks = 4
    assert stats.num_swapped_out_blocks < stats.num_preemptions * stem_blocks + 8 * (77 + 70) // 16
    num_together = 4  # start in the first step, before the beginning is cached
    assert sum(fake.num_launched_tokens) == num_needed(prompts, 70) - (8 - num_together) * len(stem)


def test_pooled_prompts_are_computed_again():
    """Their sums lie in the device row, which they lose."""
    state = {"steps": 0}

    def plan(views, budget):
        if 0 not in views or not views[0].num_pending:
            return StepPlan()
        state["steps"] += 1
        if state["steps"] == 2:
            return StepPlan(preempted=[0])
        return StepPlan(scheduled=[(0, min(20, views[0].num_pending))])

    engine, fake = make_engine(Script(plan), num_host_slots=10)
    client = Client(engine)
    client.send(0, [1] * 40, 0, pooling="mean")
    client.run()
    assert sum(fake.num_launched_tokens) == 60
    assert (engine.stats.num_preemptions, engine.stats.num_swap_preemptions) == (1, 0)


def test_drafts_change_no_token():
    prompts = random_prompts(16, 60, seed=4)
    engine, _ = run_all(prompts, 60, num_blocks=16, tokens=64, num_host_slots=200, drafts=4)
    stats = engine.snapshot()
    assert stats.num_swap_preemptions == stats.num_preemptions > 0
    assert stats.num_accepted_draft_tokens > 0


# ---------------------------------------------------------------- what doesn't


@pytest.mark.parametrize("has_cache", [False, True])
def test_aborted_sequences_free_their_host_blocks(has_cache):
    cache = BlockHashCache() if has_cache else None
    engine, _ = make_engine(num_blocks=14, num_host_slots=200, prefix_cache=cache)
    client = Client(engine)
    for id in range(12):
        client.send(id, [id] * 50, 60)
    while not engine.stats.num_swapped_out_blocks:
        engine.step()
    client.receive()
    for id in range(12):  # some are on their way out, some out
        if id not in client.finish:
            engine.abort((WORKER, id))
        engine.check_integrity()
    while engine.has_work:
        engine.step()
    engine.check_integrity()
    assert engine.stats.num_integrity_errors == 0
    assert not engine.kv._swapped_out or not any(one.slots for one in engine.kv._swapped_out)
    if not has_cache:
        assert engine.snapshot().num_used_host_blocks == 0
    assert engine.kv.num_free == 14


@pytest.mark.parametrize("has_cache", [False, True])
def test_step_that_fails_loses_what_it_copied_out(has_cache):
    """What it carried is computed again; the failed rows' requests fail."""
    cache = BlockHashCache() if has_cache else None
    engine, fake = make_engine(num_blocks=14, tokens=64, num_host_slots=200, prefix_cache=cache)
    client, prompts = Client(engine), [[id] * 50 for id in range(6)]
    for id, prompt in enumerate(prompts):
        client.send(id, prompt, 60)
    launch, collect, failing = fake.launch, fake.collect, []

    def watched(step):
        if step.copy_out and not failing:
            failing.append(step.step_id)
        launch(step)

    def failed():
        result = collect()
        if result.step_id in failing:
            return StepResult(result.step_id, result.tokens, failed=dict.fromkeys(range(len(result.tokens)), "oops"))
        return result

    fake.launch, fake.collect = watched, failed
    client.run()
    assert failing
    lost = [id for id in range(6) if client.finish[id] == FINISH_ERROR]
    assert 0 < len(lost) < 6
    for id in set(range(6)) - set(lost):
        assert client.tokens[id] == expected_tokens(prompts[id], 60)
    assert engine.kv.num_free == 14


def test_lost_host_slot_is_noticed():
    engine, _ = make_engine(num_blocks=14, num_host_slots=200)
    client = Client(engine)
    for id in range(12):
        client.send(id, [id] * 50, 60)
    while not engine.stats.num_swapped_out_blocks:
        engine.step()
    engine.check_integrity()
    assert engine.stats.num_integrity_errors == 0
    engine.kv.host_slots.allocate()
    engine.check_integrity()
    assert engine.stats.num_integrity_errors == 1


# ---------------------------------------------------------------- pins


def index_with(*hashes, num_slots):
    index = HostCacheIndex(HostSlots(num_slots))
    for block, hash in enumerate(hashes):
        index.keep(hash, block)
    leave(index)
    return index


def leave(index):
    """The step that carries the queued copies, collected at once."""
    index.slots.take_copies()
    index.arrived(index.take_queued())


def found(index, *hashes):
    return [len(index.match([hash])) for hash in hashes]


def test_pinned_entries_stay_and_cached_ones_make_room():
    index = index_with(b"a", b"b", b"c", num_slots=3)
    assert index.pin([b"a", b"d"], [0, 9])
    leave(index)
    assert found(index, b"a", b"b", b"c", b"d") == [1, 0, 1, 1]
    index.keep(b"e", 5)
    leave(index)
    assert found(index, b"a", b"c", b"d", b"e") == [1, 0, 1, 1]
    index.keep(b"f", 5)  # the only one without a pin
    leave(index)
    assert found(index, b"a", b"d", b"e", b"f") == [1, 1, 0, 1]
    index.check_integrity(pinned=[b"a", b"d"])


def test_pins_that_find_no_room_are_undone():
    index = index_with(b"a", b"b", num_slots=2)
    assert index.pin([b"a"], [0])
    assert not index.has_room([b"b", b"c"], 0)
    assert index.has_room([b"b"], 0)
    assert index.has_room([b"c"], 0)
    assert not index.has_room([b"b"], 1)
    assert not index.pin([b"b", b"c"], [1, 2])
    index.check_integrity(pinned=[b"a"])
    index.unpin([b"a"])
    assert index.pin([b"b", b"c"], [1, 2])
    leave(index)
    assert found(index, b"a", b"b", b"c") == [0, 1, 1]


def test_entry_pinned_twice_needs_two_unpins():
    index = index_with(b"a", num_slots=1)
    assert index.pin([b"a"], [0])
    assert index.pin([b"a"], [0])
    index.unpin([b"a"])
    index.keep(b"b", 1)
    assert found(index, b"a") == [1]
    index.unpin([b"a"])
    index.keep(b"b", 1)
    assert found(index, b"a") == [0]


def test_pins_survive_a_lost_copy_and_a_cleared_index():
    index = HostCacheIndex(HostSlots(4))
    assert index.pin([b"a", b"b"], [0, 1])
    index.slots.take_copies()
    index.lost(index.take_queued())
    index.check_integrity(pinned=[b"a", b"b"])
    assert found(index, b"a") == [0]
    index.keep(b"a", 0)
    leave(index)
    index.check_integrity(pinned=[b"a", b"b"])
    index.clear()
    index.unpin([b"a", b"b"])
    index.check_integrity()
    assert index.slots.num_used == 0


def test_wrong_pins_are_noticed():
    index = index_with(b"a", num_slots=2)
    assert index.pin([b"a"], [0])
    with pytest.raises(IntegrityError, match="pins"):
        index.check_integrity()


# ---------------------------------------------------------------- random loads


class Unruly:
    """A scheduler that preempts, lets wait and chooses at random, within its budget."""

    def __init__(self, seed):
        self._rng = random.Random(seed)
        self._views = {}

    def add(self, view):
        self._views[view.id] = view

    def remove(self, id):
        self._views.pop(id, None)

    def schedule(self, budget):
        rng, plan = self._rng, StepPlan()
        views = [view for view in self._views.values() if view.num_pending or view.is_running]
        rng.shuffle(views)
        running = [view for view in views if view.is_running]
        if running and (rng.random() < 0.15 or budget.num_free_blocks < 3):
            plan.preempted = [view.id for view in running[: rng.randint(1, len(running))]]
        if rng.random() < 0.1:
            return plan
        num_tokens, num_blocks = budget.max_num_tokens, budget.num_free_blocks
        num_seqs = len(running)
        for view in views:
            count = min(view.num_pending, rng.choice([1, 5, 16, 64]), num_tokens)
            if view.id in plan.preempted or count < 1 or rng.random() < 0.2:
                continue
            needed = view.num_new_blocks(count)
            if needed > num_blocks or (not view.is_running and num_seqs >= budget.max_num_seqs):
                continue
            num_seqs += not view.is_running
            num_tokens, num_blocks = num_tokens - count, num_blocks - needed
            plan.scheduled.append((view.id, count))
        return plan


@pytest.mark.parametrize("num_host_slots", [1, 6, 20, 300])
@pytest.mark.parametrize("has_cache", [False, True])
@pytest.mark.parametrize("drafts", [None, 3])
@pytest.mark.parametrize("is_unruly", [False, True])
def test_random_loads_stay_exact(num_host_slots, has_cache, drafts, is_unruly):
    seed = num_host_slots * 8 + has_cache * 4 + bool(drafts) * 2 + is_unruly
    rng = random.Random(seed)
    stems = [[rng.randrange(1000) for _ in range(rng.randint(40, 80))] for _ in range(4)]
    engine, _ = make_engine(
        Unruly(seed) if is_unruly else None, num_blocks=20, num_host_slots=num_host_slots, tokens=70, seqs=6,
        prefix_cache=BlockHashCache() if has_cache else None, drafts=drafts,
    )  # fmt: skip
    client, prompts, aborted = Client(engine), {}, set()
    for id in range(40):
        prompts[id] = rng.choice(stems)[: rng.randint(20, 80)] + [rng.randrange(1000) for _ in range(rng.randint(1, 9))]
        params = SamplingParams(max_tokens=40, seed=0, num_prompt_logprobs=1 if rng.random() < 0.2 else None)
        engine.admit((WORKER, id), array("i", prompts[id]), params)
        for _ in range(rng.randint(0, 9)):
            engine.step()
            client.receive()
            engine.check_integrity()
        if rng.random() < 0.2 and (victim := rng.randrange(id + 1)) not in client.finish:
            engine.abort((WORKER, victim))
            aborted.add(victim)
        if has_cache and rng.random() < 0.05:
            engine.kv.pool.clear_index()
    client.run()
    for id, prompt in prompts.items():
        got = client.tokens.get(id, [])
        assert got == expected_tokens(prompt, 40)[: len(got) if id in aborted else 40], f"request {id}"
    stats = engine.snapshot()
    assert stats.num_preemptions >= stats.num_swap_preemptions
    assert stats.num_swap_preemptions > 0 or num_host_slots == 1
    assert engine.kv.num_free == 20
    if not has_cache:
        assert stats.num_used_host_blocks == 0
