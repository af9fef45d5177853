"""The promises of every built-in scheduler, through the real engine on a fake runner whose tokens depend on every KV
slot, and on plain views."""

from __future__ import annotations

import random
from array import array

import pytest

from plugserve import Scheduler, StepTime
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.engine.engine import Engine
from plugserve.core.engine.engine_state import EngineLimits
from plugserve.core.wire.messages import FINISH_LENGTH
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from plugserve.plugins.schedulers.fair import FairOptions, FairScheduler
from plugserve.plugins.schedulers.fcfs import FcfsScheduler
from plugserve.plugins.schedulers.pace import Pace
from plugserve.plugins.schedulers.priority import PriorityOptions, PriorityScheduler
from plugserve.testing.fake_runner import FakeRunner, expected_tokens
from tests.plugins.schedulers.views import SchedulerDriver, View

WORKER = b"worker:0"
MAKERS = {
    "fcfs": lambda pace: FcfsScheduler(pace),
    "priority": lambda pace: PriorityScheduler(PriorityOptions(aging_s=0.5), pace),
    "priority without ageing": lambda pace: PriorityScheduler(PriorityOptions(aging_s=0), pace),
    "priority without preemption": lambda pace: PriorityScheduler(PriorityOptions(preemption_gap=0), pace),
    "fair": lambda pace: FairScheduler(FairOptions(quantum_tokens=20), pace),
    "fair with little debt": lambda pace: FairScheduler(FairOptions(quantum_tokens=5, preemption_debt=10), pace),
}
PACES = {
    "free": Pace(),
    "delayed": Pace(delay_factor=0.5),
    "short steps": Pace(max_itl_s=0.004),
    "target out of reach": Pace(delay_factor=2.0, max_itl_s=1e-9),
}


class Clock:
    """A clock that advances by a millisecond per call."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        self.now_s += 0.001
        return self.now_s


class TimedRunner(FakeRunner):
    """A step-time model: 1 ms per step and 0.1 ms per token."""

    def collect(self):
        result = super().collect()
        result.duration_s = 0.001 + 0.0001 * self.num_launched_tokens[result.step_id - 1]
        return result


def run_random_traffic(scheduler, seed, *, num_requests=60, num_blocks=24, max_model_len=200, prefix_cache=None):
    """Requests of three users arrive while others run, some are aborted; all others must end with the right tokens."""
    rng = random.Random(seed)
    fake = TimedRunner(num_blocks=num_blocks, max_model_len=max_model_len)
    engine = Engine(
        runner=fake,
        info=fake.load(),
        scheduler=scheduler,
        scheduler_name="test",
        limits=EngineLimits(rng.choice([5, 16, 40]), rng.choice([2, 5, 9])),
        prefix_cache=prefix_cache,
        clock=Clock(),
    )
    stems = [[rng.randrange(1000) for _ in range(40)] for _ in range(2)]
    got, finish, aborted, asked = {}, {}, set(), {}

    def step():
        engine.step()
        for _, message in engine.take_outputs():
            tokens, at = array("i", message.tokens), 0
            assert not message.errors
            for id, count, end in zip(message.ids, message.num_tokens, message.finish, strict=True):
                got.setdefault(id, []).extend(tokens[at : at + count])
                at += count
                finish[id] = end
        engine.check_integrity()

    for id in range(num_requests):
        prompt = rng.choice([[], *stems]) + [rng.randrange(1000) for _ in range(rng.randint(1, 90))]
        asked[id] = (prompt, rng.randint(1, max_model_len - len(prompt) - 1 if rng.random() < 0.2 else 30))
        engine.admit(
            (WORKER, id),
            array("i", prompt),
            SamplingParams(max_tokens=asked[id][1], seed=0),
            priority=rng.randint(-3, 3),
            user=rng.choice(["ada", "bob", "", "key-00000000/eve"]),
        )
        for _ in range(rng.choice([0, 0, 1, 8])):
            step()
        if rng.random() < 0.2:
            victim = rng.randrange(id + 1)
            if not finish.get(victim):
                engine.abort((WORKER, victim))
                aborted.add(victim)
    for _ in range(60_000):
        if not engine.has_work:
            break
        step()
    assert not engine.has_work, "somebody never finished"
    assert engine.stats.num_integrity_errors == engine.stats.num_plan_errors == 0
    for id, (prompt, max_tokens) in asked.items():
        if id not in aborted:
            assert finish[id] == FINISH_LENGTH
            assert got[id] == expected_tokens(prompt, max_tokens), f"request {id}"
    assert engine.kv.num_free == num_blocks
    return engine.stats


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("name", MAKERS)
def test_all_requests_finish_with_exact_tokens_in_little_memory(name, pace):
    preemptions = 0
    for seed in range(2):
        preemptions += run_random_traffic(MAKERS[name](PACES[pace]), seed).num_preemptions
    assert preemptions > 0


@pytest.mark.parametrize("name", MAKERS)
def test_one_long_sequence_fills_the_whole_pool_beside_others(name):
    for seed in range(2):
        run_random_traffic(MAKERS[name](Pace()), seed, num_requests=20, num_blocks=13)


@pytest.mark.parametrize("name", MAKERS)
def test_prefix_cache_under_pressure_stays_exact(name):
    for seed in range(2):
        stats = run_random_traffic(MAKERS[name](Pace()), seed, prefix_cache=BlockHashCache())
        assert stats.num_prefix_hit_tokens > 0


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


def running(id, num_computed, **more):
    return View(id, num_computed, num_computed=num_computed, num_blocks=-(-num_computed // 16), **more)


def started(scheduler, *views):
    """A SchedulerDriver with running views."""
    driver = SchedulerDriver(scheduler, views)
    for view in views:
        view.num_computed = view.num_blocks = 0
    driver.plan(num_tokens=10_000, num_seqs=100)
    return driver


def test_it_is_a_scheduler(make):
    assert isinstance(make(Pace()), Scheduler)


def test_every_decoding_sequence_gets_its_token_before_prompts_share_the_rest(make):
    driver = started(make(Pace()), View(0, 20), View(1, 30), View(2, 5))
    driver.add(View(3, 100, priority=-5))
    assert sorted(driver.plan(num_tokens=16).scheduled) == [(0, 1), (1, 1), (2, 1), (3, 13)]
    assert sorted(driver.plan(num_tokens=16).scheduled) == [(0, 1), (1, 1), (2, 1), (3, 13)]


def test_prompt_waits_for_its_share_of_the_last_prompts_latency(make):
    driver = started(make(Pace(delay_factor=0.5)), View(0, 20))
    driver.add(View(1, 5, arrival_s=10.0))
    assert [id for id, _ in driver.plan(10.9, prompt_latency_s=2.0).scheduled] == [0]
    assert [id for id, _ in driver.plan(11.1, prompt_latency_s=2.0).scheduled] == [0, 1]


def test_prompt_does_not_wait_while_nothing_runs(make):
    driver = SchedulerDriver(make(Pace(delay_factor=100.0)), [View(0, 5, arrival_s=10.0)])
    assert driver.plan(10.0, prompt_latency_s=2.0).scheduled == [(0, 5)]


def test_chunk_is_as_long_as_the_latency_target_allows(make):
    """1 ms a step, 0.1 ms a prompt token, 0.5 ms a decoding row: 10 ms leave 80 prompt tokens beside two rows."""
    step_time = StepTime(base_s=0.001, per_token_s=0.0001, per_row_s=0.0005)
    driver = started(make(Pace(max_itl_s=0.01001)), View(0, 20), View(1, 20))
    driver.add(View(2, 400))
    for _ in range(2):
        plan = driver.plan(num_tokens=256, step_time=step_time)
        assert sorted(plan.scheduled) == [(0, 1), (1, 1), (2, 80)]


def test_chunk_shrinks_as_the_context_grows(make):
    step_time = StepTime(base_s=0.001, per_token_s=0.0001, per_pair_s=0.0000002)
    driver = started(make(Pace(max_itl_s=0.010)), View(0, 20))
    driver.add(View(1, 4000))
    chunks = [dict(driver.plan(num_tokens=256, step_time=step_time).scheduled)[1] for _ in range(30)]
    assert chunks == sorted(chunks, reverse=True)
    assert chunks[0] > 1.5 * chunks[-1]
    for index, chunk in enumerate(chunks):
        pairs = 20 + index + chunk * (sum(chunks[:index]) + chunk)
        assert step_time.predict_s(chunk + 1, 1, pairs) <= 0.0101


def test_prompts_advance_by_a_block_when_the_target_can_not_be_met(make):
    driver = started(make(Pace(max_itl_s=0.010)), View(0, 20))
    driver.add(View(1, 400))
    assert dict(driver.plan(step_time=StepTime(base_s=0.5)).scheduled) == {0: 1, 1: 16}


def test_chunks_are_not_limited_while_no_sequence_decodes(make):
    driver = SchedulerDriver(make(Pace(max_itl_s=0.010)), [View(0, 400)])
    assert driver.plan(num_tokens=256, step_time=StepTime(base_s=0.5)).scheduled == [(0, 256)]


def test_removed_sequence_is_dropped_whether_it_runs_or_waits(make):
    driver = started(make(Pace()), View(0, 20), View(1, 20))
    driver.add(View(2, 20), View(3, 20))
    for id in (0, 2):
        driver.remove(id)
    assert sorted(id for id, _ in driver.plan().scheduled) == [1, 3]
