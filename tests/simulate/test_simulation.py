"""A simulation equals the engine in steps, tokens and preemptions, on a virtual clock."""

from __future__ import annotations

import random
from array import array
from dataclasses import replace

import pytest

from plugserve.core.contracts.runner import RunnerInfo, StepInput
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.contracts.scheduling import StepTime
from plugserve.core.engine.engine import Engine
from plugserve.core.engine.engine_state import EngineLimits
from plugserve.core.wire.trace_file import TraceRequest
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from plugserve.plugins.schedulers.fair import FairScheduler
from plugserve.plugins.schedulers.fcfs import FcfsScheduler
from plugserve.plugins.schedulers.pace import Pace
from plugserve.plugins.schedulers.priority import PriorityScheduler
from plugserve.simulate.simulated_runner import SimulatedRunner, VirtualClock
from plugserve.simulate.simulation import Machine, Simulation
from plugserve.testing.fake_runner import FakeRunner, expected_tokens

STEP_TIME = StepTime(base_s=0.010, per_token_s=0.0002, per_row_s=0.001, per_pair_s=1e-7)
MACHINE = Machine(STEP_TIME, block_size=16, num_blocks=30, max_num_seqs=6, max_num_batched_tokens=48, max_model_len=300)


def random_requests(count, seed=0, per_s=20.0):
    rng = random.Random(seed)
    arrival_s, requests = 0.0, []
    for _ in range(count):
        arrival_s += rng.expovariate(per_s)
        requests.append(
            TraceRequest(
                arrival_s=arrival_s,
                prompt_tokens=rng.randint(1, 150),
                output_tokens=rng.randint(1, 60),
                max_tokens=70,
                user=rng.choice("abc"),
                priority=rng.randint(0, 3),
            )
        )
    return requests


class ClockedFakeRunner(FakeRunner):
    """A FakeRunner, which computes real tokens from real blocks, that takes as long as SimulatedRunner."""

    def __init__(self, machine, clock):
        super().__init__(
            num_blocks=machine.num_blocks,
            block_size=machine.block_size,
            max_model_len=300,
            num_host_slots=machine.num_host_blocks,
        )
        self.timer = SimulatedRunner(self.info, machine.step_time, clock)

    def launch(self, step):
        super().launch(step)
        self.timer.launch(step)

    def collect(self):
        result = super().collect()
        result.duration_s = self.timer.collect().duration_s
        return result


def run_by_hand(scheduler, requests, machine=MACHINE):
    """The engine on a fake runner with an ordinary loop. Returns it and (tokens, first and last moment) by request."""
    clock = VirtualClock()
    fake = ClockedFakeRunner(machine, clock)
    engine = Engine(
        runner=fake,
        info=fake.load(),
        scheduler=scheduler,
        scheduler_name="test",
        limits=EngineLimits(machine.max_num_batched_tokens, machine.max_num_seqs),
        clock=clock,
    )
    waiting, seen = list(enumerate(requests)), {}
    while waiting or engine.has_work:
        while waiting and waiting[0][1].arrival_s <= clock.now_s:
            id, one = waiting.pop(0)
            prompt, output = [5] * one.prompt_tokens, one.output_tokens
            last = expected_tokens(prompt, output)[-1]
            params = SamplingParams(max_tokens=70, seed=0, min_tokens=output - 1, stop_token_ids=(last,))
            engine.admit((b"w", id), array("i", prompt), params, priority=one.priority, user=one.user)
        if engine.has_work:
            engine.step()
        elif waiting:
            clock.wait_until(waiting[0][1].arrival_s)
        for _, message in engine.take_outputs():
            for id, count in zip(message.ids, message.num_tokens, strict=True):
                tokens, first_s, _ = seen.get(id, (0, clock.now_s, 0.0))
                seen[id] = (tokens + count, first_s, clock.now_s)
    engine.drain()
    engine.check_integrity()
    assert engine.stats.num_integrity_errors == 0
    return engine, seen


@pytest.mark.parametrize("make", [FcfsScheduler, PriorityScheduler, FairScheduler])
@pytest.mark.parametrize("num_host_blocks", [0, 200])
def test_simulation_equals_the_engine_on_a_fake_runner(make, num_host_blocks):
    requests, machine = random_requests(80), replace(MACHINE, num_host_blocks=num_host_blocks)
    engine, seen = run_by_hand(make(), requests, machine)
    assert (engine.stats.num_swap_preemptions > 0) == (num_host_blocks > 0)
    outcome = Simulation(machine, make(), "test").run(requests)
    assert outcome.num_preemptions == engine.stats.num_preemptions > 0
    for id, one in enumerate(outcome.served):
        tokens, first_s, end_s = seen[id]
        assert one.num_tokens == tokens == one.request.output_tokens
        assert (one.first_s, one.end_s) == (pytest.approx(first_s), pytest.approx(end_s))


def test_preempted_sequences_that_come_back_from_host_memory_cost_no_time():
    requests = random_requests(80)
    busy_s = [
        Simulation(replace(MACHINE, num_host_blocks=number), FcfsScheduler(), "test").run(requests).busy_s
        for number in (0, 200)
    ]
    assert busy_s[1] < busy_s[0]


def test_two_runs_are_equal():
    requests = random_requests(60)
    one, two = (Simulation(MACHINE, FairScheduler(), "fair").run(requests) for _ in range(2))
    assert one == two


def test_single_request_takes_the_time_of_its_steps():
    request = TraceRequest(arrival_s=3.0, prompt_tokens=100, output_tokens=5)
    (served,) = Simulation(MACHINE, FcfsScheduler(), "fcfs").run([request]).served
    prompt_s = sum(STEP_TIME.predict_s(count, 0, count * end) for count, end in ((48, 48), (48, 96), (4, 100)))
    later_s = sum(STEP_TIME.predict_s(1, 1, end) for end in range(101, 105))
    assert served.ttft_s == pytest.approx(prompt_s)
    assert served.end_s == pytest.approx(3.0 + prompt_s + later_s)
    assert served.tpot_s == pytest.approx(later_s / 4)


def test_schedulers_see_max_tokens_not_the_recorded_length():
    seen = []

    class Spy(FcfsScheduler):
        def add(self, view):
            super().add(view)
            seen.append(view.max_num_tokens)

    request = TraceRequest(arrival_s=0, prompt_tokens=10, output_tokens=5, max_tokens=200)
    (served,) = Simulation(MACHINE, Spy(), "spy").run([request]).served
    assert (seen, served.num_tokens) == ([210], 5)


def test_pooling_request_ends_with_its_prompt():
    request = TraceRequest(arrival_s=0, prompt_tokens=60, output_tokens=0)
    (served,) = Simulation(MACHINE, FcfsScheduler(), "fcfs").run([request]).served
    assert (served.num_tokens, served.error) == (0, "")
    assert served.end_s == pytest.approx(STEP_TIME.predict_s(48, 0, 48 * 48) + STEP_TIME.predict_s(12, 0, 12 * 60))


@pytest.mark.parametrize(
    "shared",
    [{"prefix_group": "system", "prefix_tokens": 96}, {"hash_ids": ("x", "y", "z")}],
)
def test_shared_prefixes_hit_the_prefix_cache_as_on_a_server(shared):
    machine = Machine(STEP_TIME, 16, 200, 6, 48, 300, hash_tokens=32)
    requests = [TraceRequest(arrival_s=n, prompt_tokens=120, output_tokens=3, **shared) for n in range(4)]
    outcome = Simulation(machine, FcfsScheduler(), "fcfs", BlockHashCache()).run(requests)
    assert outcome.num_cached_tokens == 3 * 96
    assert outcome.served[1].ttft_s < outcome.served[0].ttft_s
    assert Simulation(machine, FcfsScheduler(), "fcfs").run(requests).num_cached_tokens == 0


def test_queue_limit_refuses_as_the_server_does():
    machine = Machine(STEP_TIME, 16, 200, 1, 48, 300, max_num_waiting=1)
    requests = [TraceRequest(arrival_s=0, prompt_tokens=10, output_tokens=3) for _ in range(4)]
    served = Simulation(machine, FcfsScheduler(), "fcfs").run(requests).served
    assert [bool(one.error) for one in served] == [False, False, True, True]
    assert served[2].ttft_s is None


def test_scheduler_that_breaks_its_contract_fails_requests_not_the_simulation():
    class Broken(FcfsScheduler):
        def schedule(self, budget):
            raise ZeroDivisionError("oops")

    outcome = Simulation(MACHINE, Broken(), "broken").run(random_requests(3))
    assert outcome.num_plan_errors > 0
    assert all("broken" in one.error for one in outcome.served)


def test_runner_queues_steps_behind_each_other():
    clock = VirtualClock()
    info = RunnerInfo(
        vocab_size=100,
        max_model_len=100,
        max_num_batched_tokens=48,
        num_blocks=10,
        block_size=16,
        kv_cache_bytes=0,
        weight_bytes=0,
        dtype="float32",
        device="cpu",
    )
    runner = SimulatedRunner(info, StepTime(base_s=1.0), clock)
    for id in (1, 2):
        runner.launch(StepInput(id, [], [], [], [], [], []))
    assert clock.now_s == 0.0
    runner.collect()
    assert clock.now_s == 1.0
    clock.wait_until(1.7)
    runner.collect()
    assert clock.now_s == 2.0
    clock.wait_until(5.0)
    runner.launch(StepInput(3, [], [], [], [], [], []))
    runner.collect()
    assert clock.now_s == 6.0


@pytest.mark.parametrize("make", [FcfsScheduler, PriorityScheduler, FairScheduler])
def test_latency_target_holds_with_the_engines_own_step_time_fit(make, monkeypatch):
    """The step-time model is fitted while serving, and chunk sizes follow it."""
    machine = Machine(STEP_TIME, 16, 2000, 12, 512, 3000)
    target_s, beside_decoding = 0.060, []
    launch = SimulatedRunner.launch

    def spy(runner, step):
        before_s = runner.busy_s
        launch(runner, step)
        num_decoding = sum(samples and count == 1 for samples, count in zip(step.samples, step.num_tokens, strict=True))
        if num_decoding and max(step.num_tokens) > 16:
            beside_decoding.append(runner.busy_s - before_s)

    monkeypatch.setattr(SimulatedRunner, "launch", spy)
    rng = random.Random(2)
    requests = [
        TraceRequest(arrival_s=n * 0.3, prompt_tokens=rng.choice([20, 1500]), output_tokens=60, user=rng.choice("ab"))
        for n in range(60)
    ]
    Simulation(machine, make(), "free").run(requests)
    longest_free_s = max(beside_decoding)
    beside_decoding.clear()
    Simulation(machine, make(pace=Pace(max_itl_s=target_s)), "paced").run(requests)
    settled = beside_decoding[10:]
    assert longest_free_s > 2 * target_s
    assert len(settled) > 100
    assert max(settled) <= 1.1 * target_s
    assert sorted(settled)[len(settled) // 2] > 0.8 * target_s  # and chunks are no smaller than that needs


@pytest.mark.parametrize("make", [FcfsScheduler, PriorityScheduler, FairScheduler])
def test_delay_factor_computes_prompts_in_fewer_and_larger_steps(make, monkeypatch):
    machine = Machine(STEP_TIME, 16, 2000, 64, 4096, 3000)
    prompts_of_steps = []
    launch = SimulatedRunner.launch

    def spy(runner, step):
        launch(runner, step)
        if num_prompts := sum(count > 1 for count in step.num_tokens):
            prompts_of_steps.append(num_prompts)

    monkeypatch.setattr(SimulatedRunner, "launch", spy)
    requests = [TraceRequest(arrival_s=n * 0.02, prompt_tokens=100, output_tokens=40) for n in range(60)]

    def mean_prompts(pace):
        prompts_of_steps.clear()
        Simulation(machine, make(pace=pace), "a pace").run(requests)
        assert sum(prompts_of_steps) >= 60  # one that doesn't fit in a step is counted again in the next
        return sum(prompts_of_steps) / len(prompts_of_steps)

    free, half, double = (mean_prompts(Pace(delay_factor=factor)) for factor in (0.0, 0.5, 2.0))
    assert free <= half < double, (free, half, double)
    assert double > 1.5 * free
