"""Requests that begin alike and arrive together: one computes the beginning; none waits for what won't come."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from plugserve.core.contracts.runner import StepResult
from plugserve.core.contracts.scheduling import StepPlan
from plugserve.core.engine.kv.shared_prefixes import SharedPrefixes
from plugserve.core.wire.messages import FINISH_ERROR
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from plugserve.testing.fake_runner import expected_tokens
from tests.core.engine.test_engine import WORKER, Client, assert_all_exact, make_engine


@dataclass
class Runner:
    """A producer: one hash a letter."""

    letters: str
    num_computed: int = 0
    num_in_flight: int = 16
    is_running: bool = True
    id: int = 0
    block_size: int = 16
    block_hashes: list[bytes] = field(default_factory=list)

    def __post_init__(self):
        self.block_hashes = hashes(self.letters)


def hashes(letters):
    return [letters[: n + 1].encode() for n in range(len(letters))]


@pytest.mark.parametrize(
    ("theirs", "ours", "start", "common"),
    [
        ("abcdef", "abcdef", 0, 6),
        ("abcdef", "abcxyz", 0, 3),
        ("ab", "abc", 0, 2),
        ("abc", "ab", 0, 2),
        ("abcd", "abxd", 1, 2),
    ],
)
def test_pending_prefix_goes_as_far_as_both_are_equal(theirs, ours, start, common):
    shared, producer = SharedPrefixes(), Runner(theirs)
    shared.add(producer)
    pending = shared.find(hashes(ours), start, len(ours))
    assert (pending.producer, pending.num_tokens) == (producer, common * 16)


@pytest.mark.parametrize(
    "producer",
    [
        Runner("xbc"),
        Runner("abc", num_in_flight=0),
        Runner("abc", num_computed=32),  # it has been computed, and is not known: nothing will bring it
        Runner("a"),
    ],
)
def test_only_who_computes_the_next_block_now_is_a_producer(producer):
    shared = SharedPrefixes()
    shared.add(producer)
    assert shared.find(hashes("abcd"), 1, 4) is None


def test_pending_prefix_ends_when_its_producer_arrives_pauses_or_stops():
    for change in ({"num_computed": 48}, {"num_in_flight": 0}, {"is_running": False}):
        shared, producer = SharedPrefixes(), Runner("abcd")
        shared.add(producer)
        pending = shared.find(hashes("abcx"), 0, 4)
        assert pending.is_on_its_way
        for name, value in change.items():
            setattr(producer, name, value)
        assert not pending.is_on_its_way


def test_pending_prefix_stops_where_a_sequence_can_start_from():
    shared = SharedPrefixes()
    shared.add(Runner("abcd"))
    assert shared.find(hashes("abcd"), 1, 3).num_tokens == 48
    assert shared.find(hashes("abcd"), 3, 3) is None


def test_producers_are_forgotten():
    shared, producer = SharedPrefixes(), Runner("abcd")
    shared.add(Runner("", id=5))
    shared.add(producer)
    producer.num_computed = 64
    shared.update(producer)
    shared.remove(7)
    assert not shared.producers


SHARED = [n % 997 for n in range(200)]  # twelve blocks and a half


def burst(count=16, **options):
    """An engine whose first request has started when the others arrive."""
    options = {"num_blocks": 300, "tokens": 64, "seqs": 32, "max_model_len": 512} | options
    engine, fake = make_engine(options.pop("scheduler", None), prefix_cache=BlockHashCache(), **options)
    client, prompts = Client(engine), [[*SHARED, 500 + n] for n in range(count)]
    client.send(0, prompts[0], 8)
    engine.step()
    for id in range(1, count):
        client.send(id, prompts[id], 8)
    return engine, fake, client, prompts


def test_burst_computes_the_shared_prefix_once():
    engine, fake, client, prompts = burst()
    client.run()
    assert_all_exact(client, prompts, 8)
    assert [client.started[id][1] for id in range(16)] == [0] + [192] * 15
    assert sum(fake.num_launched_tokens) == 201 + 15 * 9 + 16 * 7
    assert engine.stats.num_prefix_hit_tokens == 15 * 192


def test_producer_that_is_aborted_leaves_the_others_what_it_had():
    engine, _, client, prompts = burst()
    engine.step()
    engine.abort((WORKER, 0))
    client.run()
    for id in range(1, 16):
        assert client.tokens[id] == expected_tokens(prompts[id], 8)
    assert client.started[1][1] >= 64
    assert [client.started[id][1] for id in range(2, 16)] == [192] * 14


def test_producer_whose_step_fails_takes_no_other_along():
    _, fake, client, prompts = burst()
    collect = fake.collect

    def failing():
        result = collect()
        fake.collect = collect
        return StepResult(result.step_id, result.tokens, failed=dict.fromkeys(range(len(result.tokens)), "oops"))

    fake.collect = failing
    client.run()
    assert client.finish[0] == FINISH_ERROR
    for id in range(1, 16):
        assert client.tokens[id] == expected_tokens(prompts[id], 8)


def test_producer_that_is_paused_is_not_waited_for():
    class Pausing:
        """In order of arrival; but sequence 0 gets two steps, and nothing more until the others are done."""

        def __init__(self):
            self.views, self.num_plans = {}, 0

        def add(self, view):
            self.views[view.id] = view

        def remove(self, id):
            del self.views[id]

        def schedule(self, budget):
            self.num_plans += 1
            plan, left = StepPlan(), budget.max_num_tokens
            for view in self.views.values():
                is_paused = view.id == 0 and self.num_plans > 2 and len(self.views) > 1
                count = 0 if is_paused else min(view.num_pending, left)
                if count:
                    plan.scheduled.append((view.id, count))
                    left -= count
            return plan

    engine, _, client, prompts = burst(count=4, scheduler=Pausing())
    client.run()
    assert_all_exact(client, prompts, 8)
    assert client.started[1][1] == 128  # what the first two steps of sequence 0 left
    assert engine.kv.num_free == 300


def test_burst_under_pressure_with_preempted_producers_ends_and_stays_exact():
    engine, _, client, prompts = burst(count=12, num_blocks=32, tokens=24, seqs=4, num_host_slots=8)
    for id in range(12, 40):
        prompts.append([*SHARED[: id * 5], id])
        client.send(id, prompts[id], 8)
    client.run()
    assert_all_exact(client, prompts, 8)
    assert engine.kv.num_free == 32
