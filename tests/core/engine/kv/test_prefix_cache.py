"""The prefix cache in the engine, on a fake runner whose tokens depend on every KV slot being right."""

from __future__ import annotations

from array import array

import pytest

from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.contracts.scheduling import StepPlan
from plugserve.core.wire.block_hash import hash_blocks, salt_of
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from plugserve.testing.fake_runner import expected_tokens
from tests.core.engine.test_engine import WORKER, Client, make_engine

PROMPT = [*range(100), *range(4)]  # six and a half blocks


def caching_engine(**options):
    engine, fake = make_engine(prefix_cache=BlockHashCache(), **options)
    return engine, fake, Client(engine)


def send(engine, id, prompt, max_tokens=8, *, cache_salt="", hashed=True, **params):
    hashes = b"".join(hash_blocks(salt_of("", "", cache_salt), prompt, 16)) if hashed else b""
    params = SamplingParams(max_tokens=max_tokens, seed=0, **params)
    engine.admit((WORKER, id), array("i", prompt), params, cache_salt=cache_salt, block_hashes=hashes)


@pytest.mark.parametrize("first_is_hashed", [True, False])
def test_hashes_from_the_server_and_from_the_engine_are_equal(first_is_hashed):
    engine, _, client = caching_engine()
    send(engine, 0, PROMPT, hashed=first_is_hashed)
    client.run()
    send(engine, 1, PROMPT, hashed=not first_is_hashed)
    client.run()
    assert client.started[1][1] == 96
    assert client.tokens[0] == client.tokens[1] == expected_tokens(PROMPT, 8)


def test_hashes_of_another_length_than_the_prompt_are_not_believed():
    engine, _, client = caching_engine()
    engine.admit((WORKER, 0), array("i", PROMPT), SamplingParams(max_tokens=8, seed=0), block_hashes=b"x" * 16)
    client.run()
    send(engine, 1, PROMPT)
    client.run()
    assert client.started[1][1] == 96


def test_cache_salt_keeps_prompts_apart():
    engine, _, client = caching_engine()
    for id, salt in enumerate(["", "a", "b", "a"]):
        send(engine, id, PROMPT, cache_salt=salt)
        client.run()
    assert [client.started[id][1] for id in range(4)] == [0, 0, 0, 96]


@pytest.mark.parametrize(("length", "cached"), [(15, 0), (16, 0), (17, 16), (32, 16), (33, 32), (96, 80), (97, 96)])
def test_prompt_that_is_cached_whole_still_computes_at_least_one_token(length, cached):
    engine, fake, client = caching_engine()
    for id in range(2):
        fake.num_launched_tokens.clear()
        send(engine, id, PROMPT[:length], 1)
        client.run()
        assert client.tokens[id] == expected_tokens(PROMPT[:length], 1)
    assert client.started[1][1] == cached
    assert sum(fake.num_launched_tokens) == length - cached


def test_next_turn_of_a_conversation_finds_the_answer_too():
    engine, _, client = caching_engine(num_blocks=200)
    last, turn = [], PROMPT
    for id in range(4):
        send(engine, id, turn, 40)
        client.run()
        if id:  # all but the part of a block at the end, and the last token, whose keys nobody needed yet
            assert client.started[id][1] == (len(last) + 40 - 1) // 16 * 16
        last, turn = turn, [*turn, *client.tokens[id], 5, 6, 7]
    assert client.tokens[3] == expected_tokens(last, 40)


def test_prompt_logprobs_read_nothing_from_the_cache_but_fill_it():
    engine, _, client = caching_engine()
    send(engine, 0, PROMPT, num_prompt_logprobs=0)
    client.run()
    send(engine, 1, PROMPT, num_prompt_logprobs=0)
    client.run()
    send(engine, 2, PROMPT)
    client.run()
    assert [client.started[id][1] for id in range(3)] == [0, 0, 96]
    assert engine.stats.num_prefix_queried_tokens == len(PROMPT)  # who doesn't ask isn't counted


def test_hits_are_counted_in_tokens_once_a_request():
    engine, _, client = caching_engine()
    for id in range(5):
        send(engine, id, PROMPT)
        client.run()
    assert engine.stats.num_prefix_queried_tokens == 5 * len(PROMPT)
    assert engine.stats.num_prefix_hit_tokens == 4 * 96


class Swapping:
    """Starts sequences 0 and 1, lets 1 rest, then preempts it and gives 2 as many tokens as what comes back allows."""

    def __init__(self):
        self.views, self.num_plans, self.spent = {}, 0, None

    def add(self, view):
        self.views[view.id] = view

    def remove(self, id):
        del self.views[id]

    def schedule(self, budget):
        self.num_plans += 1
        views, plan = self.views, StepPlan()
        if self.num_plans in (1, 4):
            view = views[self.num_plans // 4]
            plan.scheduled.append((view.id, view.num_pending))
        elif self.num_plans == 8:
            plan.preempted.append(1)
            room = budget.num_free_blocks + views[1].num_blocks
            count = max(n for n in range(1, views[2].num_pending + 1) if views[2].num_new_blocks(n) <= room)
            self.spent = (views[1].num_blocks, count)
            plan.scheduled.append((2, count))
        elif self.num_plans > 8:
            left = budget.num_free_blocks
            for view in sorted(views.values(), key=lambda view: not view.is_running):
                needed = view.num_new_blocks(view.num_pending) if view.num_pending else 0
                if view.num_pending and needed <= left:
                    plan.scheduled.append((view.id, view.num_pending))
                    left -= needed
        return plan


def test_preempting_gives_back_what_nobody_else_shares():
    scheduler = Swapping()
    engine, _, client = caching_engine(scheduler=scheduler, num_blocks=10, tokens=512)
    shared = list(range(40))
    prompts = [[*shared, 1], [*shared, 2, 3], [7] * 150]
    for id, prompt in enumerate(prompts):
        client.send(id, prompt, 4 if id < 2 else 2)
    client.run()
    assert scheduler.spent == (1, 112)  # of the three blocks that 1 held two are 0's too; six were free
    assert engine.stats.num_plan_errors == 0
    for id, prompt in enumerate(prompts):
        assert client.tokens[id] == expected_tokens(prompt, 4 if id < 2 else 2)
    assert engine.kv.num_free == 10
