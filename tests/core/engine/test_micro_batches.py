"""Groups of sequences take turns in a pipeline: as many steps in flight as stages, and tokens as without one."""

from __future__ import annotations

import random

import pytest

from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from plugserve.testing.fake_runner import expected_tokens
from tests.core.engine.test_engine import WORKER, Client, assert_all_exact, make_engine, random_prompts


def record_rows(fake):
    """The rows of each step that fake gets."""
    steps, launch = [], fake.launch

    def recorded(step):
        steps.append(set(step.rows))
        launch(step)

    fake.launch = recorded
    return steps


@pytest.mark.parametrize("num_stages", [2, 3, 4])
def test_groups_of_equal_size_are_in_flight_at_the_same_time(num_stages):
    engine, fake = make_engine(num_stages=num_stages, num_blocks=200, seqs=12)
    steps = record_rows(fake)
    client, prompts = Client(engine), random_prompts(12, 4)
    for id, prompt in enumerate(prompts):
        client.send(id, prompt, 30)
    client.run()
    assert_all_exact(client, prompts, 30)
    assert fake.max_in_flight == num_stages + 1
    for whole in (steps[:num_stages], steps[-2 * num_stages : -num_stages]):
        assert [len(rows) for rows in whole] == [12 // num_stages] * num_stages
    whole = steps[num_stages : 2 * num_stages]  # one round

    assert len(set.union(*whole)) == 12


def test_a_lone_sequence_has_one_step_in_flight_and_its_prompt_one_a_stage():
    engine, fake = make_engine(num_stages=3, num_blocks=200, tokens=8)
    client = Client(engine)
    client.send(0, [1, 2, 3], 20)
    client.run()
    assert fake.max_in_flight == 2
    client.send(1, [5] * 90, 20)
    client.run()
    assert fake.max_in_flight == 4
    assert client.tokens == {0: expected_tokens([1, 2, 3], 20), 1: expected_tokens([5] * 90, 20)}


def test_a_group_that_lost_its_sequences_gets_others():
    engine, fake = make_engine(num_stages=2, num_blocks=200)
    steps = record_rows(fake)
    client = Client(engine)
    for id in range(8):
        client.send(id, [id, 9], 60 if id < 4 else 3)  # the second group ends early
    client.run()
    assert [len(rows) for rows in steps[-40:-4]] == [2] * 36
    assert all(client.tokens[id] == expected_tokens([id, 9], 60 if id < 4 else 3) for id in range(8))


@pytest.mark.parametrize("num_stages", [2, 3])
@pytest.mark.parametrize("tokens", [16, 64])
@pytest.mark.parametrize("num_host_slots", [0, 30])
def test_random_traffic_with_aborts_preemption_and_shared_prefixes_stays_exact(num_stages, tokens, num_host_slots):
    rng = random.Random(num_stages * 100 + tokens)
    engine, _ = make_engine(
        num_stages=num_stages, num_blocks=22, tokens=tokens, seqs=6, num_host_slots=num_host_slots,
        prefix_cache=BlockHashCache(),
    )  # fmt: skip
    client, shared = Client(engine), [rng.randrange(1000) for _ in range(50)]
    sent, aborted = {}, set()
    for id in range(60):
        prompt = shared[: rng.randint(0, 50)] + [rng.randrange(1000) for _ in range(rng.randint(1, 30))]
        sent[id] = (prompt, rng.randint(1, 60))
        client.send(id, *sent[id])
        for _ in range(rng.randint(0, 6)):
            engine.step()
            client.receive()
            engine.check_integrity()
        if rng.random() < 0.2 and id not in client.finish:
            engine.abort((WORKER, id))
            aborted.add(id)
    client.run()
    for id in sent.keys() - aborted:
        assert client.tokens[id] == expected_tokens(*sent[id])
    assert engine.stats.num_preemptions > 0
    assert engine.stats.num_prefix_hit_tokens > 0
    assert engine.kv.num_free == 22
