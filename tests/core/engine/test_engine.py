"""The engine's step on a fake runner whose tokens depend on every KV slot being right."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import textwrap
from array import array

import pytest

from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.contracts.scheduling import StepBudget, StepPlan
from plugserve.core.engine.acceptance import DraftPolicy
from plugserve.core.engine.engine import Engine
from plugserve.core.engine.engine_process import LocalEngineHandle
from plugserve.core.engine.engine_state import EngineLimits
from plugserve.core.wire.messages import FINISH_ERROR, FINISH_LENGTH, FINISH_REFUSED, FINISH_STOP
from plugserve.core.wire.sequence_times import SequenceTimes
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from plugserve.plugins.schedulers.fcfs import FcfsScheduler, make_fcfs
from plugserve.testing.contexts import scheduler_context
from plugserve.testing.fake_runner import FakeRunner, expected_tokens

WORKER = b"worker:0"


def make_engine(scheduler=None, *, tokens=64, seqs=8, eos=(), prefix_cache=None, waiting=None, drafts=None, **runner):
    fake = FakeRunner(**runner)
    engine = Engine(
        runner=fake,
        info=fake.load(),
        scheduler=scheduler or make_fcfs(scheduler_context()),
        scheduler_name="test",
        limits=EngineLimits(max_num_batched_tokens=tokens, max_num_seqs=seqs, max_num_waiting=waiting),
        eos_ids=eos,
        prefix_cache=prefix_cache,
        draft_policy=DraftPolicy(drafts, is_adaptive=False) if drafts else None,
    )
    return engine, fake


class Client:
    """Collects what an engine delivers, by request id."""

    def __init__(self, engine):
        self.engine = engine
        self.tokens: dict[int, list[int]] = {}
        self.finish: dict[int, int] = {}
        self.errors: dict[int, str] = {}
        self.started: dict[int, tuple[float, int]] = {}
        self.ended: dict[int, SequenceTimes] = {}

    def send(self, id, prompt, max_tokens, **params):
        self.engine.admit((WORKER, id), array("i", prompt), SamplingParams(max_tokens=max_tokens, seed=0, **params))

    def receive(self):
        for _, message in self.engine.take_outputs():
            tokens, at = array("i", message.tokens), 0
            for id, count, finish in zip(message.ids, message.num_tokens, message.finish, strict=True):
                assert id not in self.finish, "a finished request got more"
                self.tokens.setdefault(id, []).extend(tokens[at : at + count])
                at += count
                if finish:
                    self.finish[id] = finish
            self.errors |= message.errors
            self.started |= message.started
            self.ended |= message.ended

    def run(self, max_steps=10_000):
        for _ in range(max_steps):
            if not self.engine.has_work:
                break
            self.engine.step()
            self.receive()
            self.engine.check_integrity()
        self.receive()
        assert not self.engine.has_work, "the engine never finished"
        assert self.engine.stats.num_integrity_errors == 0


def random_prompts(count, longest, seed=0):
    rng = random.Random(seed)
    return [[rng.randrange(1000) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def assert_all_exact(client, prompts, max_tokens):
    for id, prompt in enumerate(prompts):
        assert client.tokens[id] == expected_tokens(prompt, max_tokens), f"request {id}"
        assert client.finish[id] == FINISH_LENGTH


@pytest.mark.parametrize("tokens", [3, 16, 64, 1000])
def test_chunked_prefill_does_not_change_tokens(tokens):
    engine, fake = make_engine(tokens=tokens, num_blocks=200)
    client, prompts = Client(engine), random_prompts(12, 90)
    for id, prompt in enumerate(prompts):
        client.send(id, prompt, 20)
    client.run()
    assert_all_exact(client, prompts, 20)
    assert max(fake.num_launched_tokens) <= tokens
    assert engine.kv.num_free == 200


def test_preemption_under_kv_pressure_does_not_change_tokens():
    engine, _ = make_engine(num_blocks=14, tokens=32)
    client, prompts = Client(engine), random_prompts(16, 60, seed=1)
    for id, prompt in enumerate(prompts):
        client.send(id, prompt, 60)
    client.run()
    assert_all_exact(client, prompts, 60)
    assert engine.stats.num_preemptions > 0
    assert engine.kv.num_free == 14
    preemptions = [one for times in client.ended.values() for one in times.preemptions]
    assert len(preemptions) == engine.stats.num_preemptions
    assert all(one.at_s < one.resumed_s and not one.is_swapped for one in preemptions)


def test_last_message_of_a_sequence_has_its_times():
    fake = FakeRunner(num_blocks=20)
    now = itertools.count()
    engine = Engine(
        runner=fake,
        info=fake.load(),
        scheduler=make_fcfs(scheduler_context()),
        scheduler_name="test",
        limits=EngineLimits(max_num_batched_tokens=16, max_num_seqs=1),
        clock=lambda: float(next(now)),
    )
    client = Client(engine)
    client.send(0, [1] * 40, 4)
    client.send(1, [1], 1)
    client.run()
    for id, num_decoding in ((0, 4), (1, 1)):
        times = client.ended[id]
        assert times.arrived_s < times.scheduled_s < times.first_token_s < times.ended_s
        assert times.queue_s + times.prefill_s + times.decode_s == times.ended_s - times.arrived_s
        assert (times.decode_s > 1.0) == (num_decoding > 1)
    assert client.ended[1].scheduled_s > client.ended[0].ended_s


def test_steps_are_counted_by_the_tokens_that_come_of_them():
    """As vLLM's test_metrics_counts has it: a request of P prompt tokens and N new ones is N steps of P + N in all."""
    engine, _ = make_engine()
    client = Client(engine)
    for id in range(3):
        client.send(id, range(10), 7)
        client.run()
    stats = engine.snapshot()
    assert stats.num_step_tokens == 3 * (10 + 7)
    assert sum(stats.num_steps_by_tokens) == 3 * 7
    assert stats.num_steps_by_tokens[:4] == [3 * 6, 0, 3, 0]


def test_sequence_budget_is_kept():
    engine, fake = make_engine(seqs=3, num_blocks=200)
    client, prompts = Client(engine), random_prompts(10, 30)
    for id, prompt in enumerate(prompts):
        client.send(id, prompt, 10)
    client.run()
    assert_all_exact(client, prompts, 10)
    assert fake.max_batch == 3


def test_row_of_a_preempted_sequence_is_free_once_its_step_is_collected():
    class Exchanging(FcfsScheduler):
        """Lets sequence 1 start in the plan that preempts sequence 0."""

        def schedule(self, budget):
            views = self._views
            if views[0].is_running and views[0].num_computed:
                return StepPlan(scheduled=[(1, views[1].num_pending)], preempted=[0])
            return StepPlan(scheduled=[(0, views[0].num_pending)] if views[0].num_pending else [])

    engine, _ = make_engine(make_fcfs(scheduler_context()), seqs=1)
    scheduler = Exchanging.__new__(Exchanging)
    scheduler.__dict__ = engine._planner._scheduler.__dict__
    engine._planner._scheduler = scheduler
    client = Client(engine)
    for id in range(2):
        client.send(id, [1, 2, 3], 20)
    for _ in range(4):
        engine.step()
    client.receive()
    assert "it lets 2 sequences run, the budget is 1" in client.errors[1]


def test_stop_token_ends_and_is_delivered():
    prompt = [1, 2, 3]
    text = expected_tokens(prompt, 10)
    engine, _ = make_engine(eos=[text[4]])
    client = Client(engine)
    client.send(0, prompt, 10)
    client.send(1, prompt, 10, ignore_eos=True)
    client.send(2, prompt, 10, ignore_eos=True, stop_token_ids=(text[2],))
    client.send(3, prompt, 10, min_tokens=5)
    client.run()
    assert (client.tokens[0], client.finish[0]) == (text[:5], FINISH_STOP)
    assert (client.tokens[1], client.finish[1]) == (text, FINISH_LENGTH)
    assert (client.tokens[2], client.finish[2]) == (text[:3], FINISH_STOP)
    assert client.tokens[3] == text  # the fake runner draws the held-back token, and the engine goes on


def test_abort_frees_blocks_after_the_step_in_flight():
    engine, _ = make_engine(num_blocks=32)
    client = Client(engine)
    for id in range(4):
        client.send(id, [id] * 40, 50)
    for _ in range(5):
        engine.step()
    client.receive()
    for id in (0, 2):
        engine.abort((WORKER, id))
    engine.check_integrity()
    client.run()
    assert 0 not in client.finish
    assert client.tokens[1] == expected_tokens([1] * 40, 50)
    assert client.tokens[3] == expected_tokens([3] * 40, 50)
    assert engine.kv.num_free == 32


def test_worker_that_dies_takes_its_requests_along():
    engine, _ = make_engine()
    for id in range(3):
        engine.admit((b"worker:1", id), array("i", [1, 2]), SamplingParams(max_tokens=400, seed=0))
    client = Client(engine)
    client.send(0, [5, 6], 8)
    engine.step()
    assert engine.abort_worker(b"worker:1") == 3
    client.run()
    assert client.tokens[0] == expected_tokens([5, 6], 8)


@pytest.mark.parametrize("drafts", [None, 1, 4, 20])
def test_random_traffic_with_aborts_keeps_every_token_exact(drafts):
    rng = random.Random(7)
    engine, _ = make_engine(num_blocks=30, tokens=24, seqs=6, drafts=drafts)
    client, prompts, aborted = Client(engine), random_prompts(80, 50, seed=3), set()
    for id, prompt in enumerate(prompts):
        client.send(id, prompt, 30)
        for _ in range(rng.randint(0, 6)):
            engine.step()
            client.receive()
            engine.check_integrity()
        if rng.random() < 0.3:
            victim = rng.randrange(id + 1)
            if victim not in client.finish:
                engine.abort((WORKER, victim))
                aborted.add(victim)
    client.run()
    for id, prompt in enumerate(prompts):
        expected = expected_tokens(prompt, 30)
        assert client.tokens.get(id, []) == (expected[: len(client.tokens.get(id, []))] if id in aborted else expected)
    assert engine.kv.num_free == 30
    assert (engine.stats.num_accepted_draft_tokens > 0) == bool(drafts)


def test_prefix_cache_gives_equal_tokens_and_counts_hits():
    shared = [9] * 100
    engine, fake = make_engine(prefix_cache=BlockHashCache(), num_blocks=40)
    client = Client(engine)
    client.send(0, shared + [1], 20)
    client.run()
    before = sum(fake.num_launched_tokens)
    client.send(1, shared + [2], 20)
    client.run()
    assert client.tokens[0] == expected_tokens(shared + [1], 20)
    assert client.tokens[1] == expected_tokens(shared + [2], 20)
    assert client.started[1][1] == 96  # six full blocks of 16
    assert sum(fake.num_launched_tokens) - before <= 5 + 20
    assert engine.kv.num_free == 40


def test_prefix_cache_under_pressure_and_preemption_stays_exact():
    rng = random.Random(5)
    stems = [[rng.randrange(1000) for _ in range(48)] for _ in range(3)]
    prompts = [rng.choice(stems) + [rng.randrange(1000) for _ in range(rng.randint(1, 20))] for _ in range(60)]
    engine, _ = make_engine(prefix_cache=BlockHashCache(), num_blocks=20, tokens=40, seqs=6)
    client = Client(engine)
    for id, prompt in enumerate(prompts):
        client.send(id, prompt, 40)
        engine.step()
    client.run()
    assert_all_exact(client, prompts, 40)
    assert engine.stats.num_prefix_hit_tokens > 0
    assert engine.stats.num_preemptions > 0
    assert engine.kv.num_free == 20


def test_request_that_can_not_be_served_is_answered_with_an_error():
    engine, _ = make_engine(max_model_len=100)
    client = Client(engine)
    client.send(0, [1] * 90, 20)
    client.send(1, [5000], 5)
    client.send(2, [1], 5)
    client.run()
    assert client.finish[0] == client.finish[1] == FINISH_ERROR
    assert "over 100 tokens" in client.errors[0]
    assert "outside the vocabulary" in client.errors[1]
    assert client.tokens[2] == expected_tokens([1], 5)


class BrokenScheduler(FcfsScheduler):
    """Breaks one rule while request 0 lives, then behaves."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def schedule(self, budget: StepBudget) -> StepPlan:
        plan = super().schedule(budget)
        if plan.scheduled and plan.scheduled[0][0] == 0 and self.rule:
            rule, self.rule = self.rule, ""
            id, count = plan.scheduled[0]
            if rule == "twice":
                plan.scheduled.append((id, 1))
            elif rule == "too many":
                plan.scheduled[0] = (id, count + 1)
            elif rule == "budget":
                plan.scheduled[0] = (0, budget.max_num_tokens + 1)
            elif rule == "ghost":
                plan.scheduled.append((999, 1))
            elif rule == "both":
                plan.preempted.append(id)
            elif rule == "raise":
                raise ZeroDivisionError("oops")
            elif rule == "none":
                return None
        return plan


@pytest.mark.parametrize("rule", ["twice", "too many", "budget", "ghost", "both", "raise", "none"])
def test_broken_plan_names_the_scheduler_and_the_engine_goes_on(rule):
    engine, _ = make_engine(BrokenScheduler(rule), tokens=64)
    client = Client(engine)
    client.send(0, [1] * 200, 5)
    client.run()
    assert client.finish[0] == FINISH_ERROR
    assert "scheduler 'test'" in client.errors[0]
    assert engine.stats.num_plan_errors == 1
    client.send(1, [3, 4], 5)
    client.run()
    assert client.tokens[1] == expected_tokens([3, 4], 5)
    assert engine.kv.num_free == 64


@pytest.mark.parametrize("method", ["add", "remove"])
def test_scheduler_that_raises_while_told_hurts_one_request_at_most(method):
    class Moody(FcfsScheduler):
        def add(self, view):
            super().add(view)
            if method == "add" and view.id == 0:
                raise ZeroDivisionError("oops")

        def remove(self, id):
            super().remove(id)
            if method == "remove" and id == 0:
                raise ZeroDivisionError("oops")

    engine, _ = make_engine(Moody())
    client = Client(engine)
    client.send(0, [1, 2], 5)
    client.send(1, [3, 4], 5)
    client.run()
    assert client.tokens[1] == expected_tokens([3, 4], 5)
    assert client.finish[0] == (FINISH_ERROR if method == "add" else FINISH_LENGTH)
    assert engine.stats.num_plan_errors == 1
    assert engine.kv.num_free == 64


def test_runner_that_raises_once_fails_one_step_and_one_that_goes_on_ends_the_engine():
    engine, fake = make_engine()
    client, collect, left = Client(engine), fake.collect, [1]

    def moody():
        result = collect()
        if left[0] > 0:
            left[0] -= 1
            raise ZeroDivisionError("oops")
        return result

    fake.collect = moody
    client.send(0, [1, 2], 5)
    client.run()
    assert client.finish[0] == FINISH_ERROR
    assert client.errors[0] == "the model runner failed: ZeroDivisionError"
    client.send(1, [3, 4], 5)
    client.run()
    assert client.tokens[1] == expected_tokens([3, 4], 5)
    assert engine.kv.num_free == 64
    left[0] = 99

    def send_and_step():
        for id in range(2, 30):
            client.send(id, [1], 5)
            engine.step()

    with pytest.raises(ZeroDivisionError):
        send_and_step()


def test_view_is_read_only():
    class Spy(FcfsScheduler):
        def add(self, view):
            super().add(view)
            self.view = view

    spy = Spy()
    engine, _ = make_engine(spy)
    Client(engine).send(0, [1, 2], 3)
    with pytest.raises(AttributeError, match="read-only"):
        spy.view.num_computed = 7


def test_engine_runs_100_steps_with_torch_blocked():
    program = """
        import sys
        class Block:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("torch", "transformers", "sanic"):
                    raise ImportError(name + " is blocked")
        sys.meta_path.insert(0, Block())
        from array import array
        from plugserve.testing.contexts import scheduler_context
        from plugserve.core.engine.engine import Engine
        from plugserve.core.engine.engine_state import EngineLimits
        from plugserve.core.contracts.sampling import SamplingParams
        from plugserve.plugins.schedulers.fcfs import make_fcfs
        from plugserve.testing.fake_runner import FakeRunner
        import plugserve.core.engine.engine_process
        fake = FakeRunner()
        engine = Engine(runner=fake, info=fake.load(), scheduler=make_fcfs(scheduler_context()),
                        scheduler_name="fcfs", limits=EngineLimits(64, 8))
        engine.admit((b"w", 1), array("i", [1, 2, 3]), SamplingParams(max_tokens=100, seed=0))
        while engine.has_work:
            engine.step()
        print(engine.snapshot().num_steps, engine.snapshot().num_generated_tokens)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert done.stdout.split() == ["100", "100"], done.stderr


# ---------------------------------------------------------------- the queue's limit


@pytest.mark.parametrize(("seqs", "waiting"), [(1, 0), (1, 1), (2, 3), (8, 0)])
def test_burst_fills_the_rows_and_the_queue_and_no_more(seqs, waiting):
    engine, _ = make_engine(seqs=seqs, waiting=waiting)
    client = Client(engine)
    for id in range(seqs + waiting + 4):
        client.send(id, [1, 2, 3], 5)
    client.run()
    taken = [id for id, finish in client.finish.items() if finish == FINISH_LENGTH]
    refused = [id for id, finish in client.finish.items() if finish == FINISH_REFUSED]
    assert sorted(taken) == list(range(seqs + waiting))
    assert len(refused) == 4
    assert f"{waiting} requests wait" in client.errors[refused[0]]


def test_queue_takes_again_what_it_has_room_for():
    engine, _ = make_engine(seqs=1, waiting=1)
    client = Client(engine)
    for id in range(2):
        client.send(id, [1, 2, 3], 4)
    engine.step()
    engine.step()
    client.send(2, [1], 4)
    client.receive()
    assert client.finish == {2: FINISH_REFUSED}
    client.run()
    for id in (3, 4, 5):
        client.send(id, [1], 4)
    client.run()
    assert [client.finish[id] for id in (3, 4, 5)] == [FINISH_LENGTH, FINISH_LENGTH, FINISH_REFUSED]


def test_queue_of_none_opens_again_after_those_left_behind_are_aborted():
    engine, _ = make_engine(seqs=4, waiting=0, num_blocks=4)
    client = Client(engine)
    for id in range(4):
        client.send(id, [1] * 30, 20)
    engine.step()
    engine.step()
    for id in range(4):
        engine.abort((WORKER, id))
    engine.drain()
    client.receive()
    client.send(9, [1], 2)
    client.run()
    assert client.finish[9] == FINISH_LENGTH


def test_snapshot_stays_as_it_was():
    """So plugins can take differences (EngineHandle.stats)."""
    engine, _ = make_engine(drafts=2)
    handle = LocalEngineHandle("model", None, engine)
    before = handle.stats()
    before_seconds = dict(before.plugin_seconds)
    client = Client(engine)
    client.send(0, [1, 2, 3], 20)
    client.run()
    after = handle.stats()
    assert (before.num_prompt_tokens, before.num_generated_tokens, before.num_steps) == (0, 0, 0)
    assert (after.num_prompt_tokens, after.num_generated_tokens) == (3, 20)
    assert before.plugin_seconds == before_seconds
    assert after.plugin_seconds["test schedule"] > before_seconds["test schedule"]
    assert sum(after.num_accepted_per_position) > sum(before.num_accepted_per_position) == 0


@pytest.mark.parametrize("prompt", [[-1], [1, 2, 1000], [3, -(2**31)], [2**31 - 1, 5]])
def test_prompt_with_an_id_outside_the_vocabulary_fails_alone(prompt):
    engine, _ = make_engine(vocab_size=1000)
    client = Client(engine)
    client.send(0, [0, 999], 3)
    client.send(1, prompt, 3)
    client.run()
    assert client.finish == {0: FINISH_LENGTH, 1: FINISH_ERROR}
    assert "vocabulary of 1000" in client.errors[1]
    assert client.tokens[0] == expected_tokens([0, 999], 3)
