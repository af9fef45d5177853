"""Slots of LoRA adapters: who enters, who waits, and that nothing is left behind."""

from __future__ import annotations

import gc
import random
import weakref
from array import array

import pytest

from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.engine.adapter_pool import PATIENCE_S
from plugserve.core.engine.engine import Engine
from plugserve.core.engine.engine_state import EngineLimits
from plugserve.core.wire.messages import FINISH_NO_ADAPTER
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from plugserve.plugins.schedulers.fcfs import make_fcfs
from plugserve.testing.contexts import scheduler_context
from plugserve.testing.fake_runner import FakeRunner, expected_tokens


class Weights:
    """What a LoRA manager would have read."""


class SlotRunner(FakeRunner):
    """Notes what is in each slot, and that a row's slot holds its adapter whenever it is computed."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.slots = {}
        self.slot_of_row = {}
        self.used = []

    def launch(self, step):
        for row in step.freed_rows:
            self.slot_of_row.pop(row, None)
        for new in step.new_rows:
            self.slot_of_row[new.row] = new.adapter_slot
        self.slots |= dict(step.adapters)
        slots = [self.slot_of_row[row] for row in step.rows]
        assert step.has_adapters == any(slot >= 0 for slot in slots)
        assert all(self.slots[slot] is not None for slot in slots if slot >= 0)
        self.used.append({slot for slot in slots if slot >= 0})
        super().launch(step)


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


def make_engine(num_slots=2, *, max_num_seqs=8, num_blocks=64, waiting=None, prefix_cache=None, in_memory=64):
    runner, clock = SlotRunner(num_blocks=num_blocks), Clock()
    engine = Engine(
        runner=runner,
        info=runner.load(),
        scheduler=make_fcfs(scheduler_context()),
        scheduler_name="fcfs",
        limits=EngineLimits(64, max_num_seqs, waiting, max_loras=num_slots, max_cpu_loras=in_memory),
        prefix_cache=prefix_cache,
        clock=clock,
    )
    return engine, runner, clock


def admit(engine, id, adapter_id=0, max_tokens=4, prompt=(1, 2, 3)):
    params = SamplingParams(max_tokens=max_tokens, seed=0, ignore_eos=True)
    engine.admit((b"w", id), array("i", prompt), params, adapter_id=adapter_id)


def run(engine, told=None, most=None):
    """Steps until nothing is left; returns the tokens by request, and errors."""
    told = {} if told is None else told
    while engine.has_work and (most is None or most > 0):
        engine.step()
        most = most if most is None else most - 1
        for _, message in engine.take_outputs():
            tokens, at = array("i", message.tokens), 0
            for id, count, finish in zip(message.ids, message.num_tokens, message.finish, strict=True):
                told.setdefault(id, []).extend(tokens[at : at + count])
                at += count
                if id in message.errors:
                    told[id] = (finish, message.errors[id])
    engine.check_integrity()
    assert engine.stats.num_integrity_errors == 0
    return told


def test_adapters_share_slots_and_every_request_is_answered():
    engine, runner, _ = make_engine(2)
    for id in range(1, 6):
        engine.adapters.add(id, f"a{id}", Weights())
    for id in range(20):
        admit(engine, id, id % 6)
    told = run(engine)
    assert told == {id: expected_tokens([1, 2, 3], 4) for id in range(20)}
    assert engine.adapters.num_slots_in_use == 2
    assert engine.snapshot().num_adapter_swaps >= 5
    assert all(len(used) <= 2 for used in runner.used)


def test_who_waits_for_a_slot_holds_nobody_up():
    engine, _runner, _ = make_engine(1)
    engine.adapters.add(1, "a", Weights())
    engine.adapters.add(2, "b", Weights())
    admit(engine, 1, 1, max_tokens=100)
    admit(engine, 2, 2)
    admit(engine, 3, 0)
    admit(engine, 4, 1)
    told = run(engine, most=10)
    assert [len(told.get(id, ())) for id in (2, 3, 4)] == [0, 4, 4]
    assert engine.snapshot().num_requests_waiting_for_adapter == 1
    assert len(run(engine, told)[2]) == 4


def test_an_adapter_in_constant_use_gives_its_slot_away_after_a_while():
    engine, _, clock = make_engine(1)
    engine.adapters.add(1, "a", Weights())
    engine.adapters.add(2, "b", Weights())
    told, next_id = {}, 100
    admit(engine, 1, 1, max_tokens=30)
    admit(engine, 2, 2)
    for _ in range(200):
        clock.now_s += PATIENCE_S / 20
        admit(engine, next_id, 1, max_tokens=8)  # there is always another one
        next_id += 1
        run(engine, told, most=1)
        if len(told.get(2, ())) == 4:
            break
    else:
        pytest.fail("the waiting adapter starved")
    told = run(engine, told)
    assert all(len(told[id]) == 8 for id in range(100, next_id))


def test_a_closed_slot_opens_again_when_nobody_wants_it_any_more():
    engine, _, clock = make_engine(1)
    engine.adapters.add(1, "a", Weights())
    engine.adapters.add(2, "b", Weights())
    admit(engine, 1, 1, max_tokens=50)
    admit(engine, 2, 2)
    clock.now_s += 2 * PATIENCE_S
    told = run(engine, most=2)
    admit(engine, 3, 1)  # waits: the slot is closed
    assert (b"w", 3) in engine.adapters.waiting
    engine.abort((b"w", 2))
    clock.now_s += 2 * PATIENCE_S
    told = run(engine, told, most=12)
    assert len(told[3]) == 4


def test_waiting_requests_can_be_aborted_and_count_as_waiting():
    engine, _, _ = make_engine(1, waiting=1)
    engine.adapters.add(1, "a", Weights())
    engine.adapters.add(2, "b", Weights())
    admit(engine, 1, 1, max_tokens=40)
    told = run(engine, most=2)
    admit(engine, 2, 2)
    for id in range(3, 12):
        admit(engine, id, 2)
    told = run(engine, told, most=1)
    assert sum("The server is busy" in str(told.get(id)) for id in range(3, 12)) > 0
    assert engine.abort_worker(b"w") >= 2
    run(engine)
    assert not engine.adapters.waiting


def test_unloaded_adapters_take_nobody_in_and_end_what_they_have():
    engine, runner, _ = make_engine(1)
    for id in (1, 2):
        engine.adapters.add(id, "a", Weights())
    admit(engine, 1, 1, max_tokens=20)
    admit(engine, 2, 2)  # waits
    told = run(engine, most=3)
    engine.adapters.retire(1)
    engine.adapters.retire(2)
    admit(engine, 3, 1)
    admit(engine, 4, 77)
    told = run(engine, told)
    assert (len(told[1]), len(told[2])) == (20, 4)
    for id in (3, 4):
        assert told[id] == (FINISH_NO_ADAPTER, "The LoRA adapter has just been unloaded.")
    assert engine.adapters.num_known == 0
    assert set(runner.slots.values()) == {None}


def test_weights_are_let_go_when_the_last_request_has_ended():
    engine, runner, _ = make_engine(2)
    weights = Weights()
    gone = weakref.ref(weights)
    engine.adapters.add(1, "a", weights)
    del weights
    admit(engine, 1, 1)
    run(engine, most=2)
    engine.adapters.retire(1)
    assert gone() is not None
    run(engine)
    assert runner.slots == {0: None}  # without any further request
    gc.collect()
    assert gone() is None


def test_prefix_cache_keeps_adapters_apart():
    engine, _, _ = make_engine(2, prefix_cache=BlockHashCache())
    engine.adapters.add(1, "a", Weights())
    engine.adapters.add(2, "a", Weights())  # the same name, loaded anew
    prompt = list(range(48))
    hits = []
    for id, adapter in enumerate([0, 1, 2, 0, 1, 2]):
        before = engine.snapshot().num_prefix_hit_tokens
        admit(engine, id, adapter, prompt=prompt)
        run(engine)
        hits.append(engine.snapshot().num_prefix_hit_tokens - before)
    assert hits[:3] == [0, 0, 0]
    assert min(hits[3:]) >= 32


@pytest.mark.parametrize("seed", range(6))
def test_random_loads_unloads_aborts_and_preemptions_leave_nothing_behind(seed):
    rng = random.Random(seed)
    engine, runner, clock = make_engine(rng.choice([1, 2, 3]), num_blocks=12)
    known, live, told, next_id, next_adapter = [], {}, {}, 0, 1
    for _ in range(400):
        clock.now_s += 0.05
        what = rng.random()
        if what < 0.15 and len(known) < 6:
            engine.adapters.add(next_adapter, "a", Weights())
            known.append(next_adapter)
            next_adapter += 1
        elif what < 0.25 and known:
            engine.adapters.retire(known.pop(rng.randrange(len(known))))
        elif what < 0.6:
            size = rng.randrange(1, 12)
            admit(engine, next_id, rng.choice([0, *known]), size, prompt=list(range(rng.randrange(1, 40))))
            live[next_id] = size
            next_id += 1
        elif what < 0.65 and live:
            id = rng.choice(list(live))
            engine.abort((b"w", id))
            del live[id]
        run(engine, told, most=1)
    for adapter in known:
        engine.adapters.retire(adapter)
    run(engine, told)
    assert all(len(told[id]) == size for id, size in live.items())
    assert engine.adapters.num_known == 0
    assert engine.adapters.num_slots_in_use == 0
    assert engine.kv.num_free == engine.kv.num_blocks
    assert set(runner.slots.values()) <= {None}


# ---- host memory


class Folders:
    """Reads what the pool wants, at each call with the given chance; unreadable are the ids that can't be read."""

    def __init__(self, engine, unreadable=()):
        self.engine, self.unreadable = engine, unreadable
        self.wanted, self.num_reads = [], 0

    def read(self):
        self.wanted += self.engine.adapters.take_wanted()
        for adapter in self.wanted:
            self.num_reads += 1
            if adapter.id in self.unreadable:
                self.engine.refuse_adapter(adapter.id, "gone")
            else:
                self.engine.adapters.note_read(adapter.id, Weights())
        self.wanted.clear()


def run_with(folders, told, random_from=None):
    """Steps until nothing is left, with reads between the steps."""
    for _ in range(2000):
        if not folders.engine.has_work:
            return run(folders.engine, told)
        run(folders.engine, told, most=1)
        if random_from is None or random_from.random() < 0.5:
            folders.read()
    pytest.fail("a request waits for ever")


def test_adapters_beyond_host_memory_are_read_again_when_they_are_used():
    engine, _, _ = make_engine(2, in_memory=3)
    for id in range(1, 7):
        engine.adapters.add(id, f"a{id}", Weights())
    assert (engine.adapters.num_known, engine.adapters.num_in_memory) == (6, 3)
    folders, told = Folders(engine), {}
    admit(engine, 1, 6)  # the newest is there
    assert run_with(folders, told) == {1: expected_tokens([1, 2, 3], 4)}
    assert folders.num_reads == 0
    admit(engine, 2, 1)  # the oldest is not
    assert engine.is_stalled or run(engine, told, most=2) is told
    assert 2 not in told
    assert engine.is_stalled  # the loop waits for the read rather than spin
    assert run_with(folders, told)[2] == expected_tokens([1, 2, 3], 4)
    assert folders.num_reads == 1
    assert engine.snapshot().num_adapters_in_memory == 3
    admit(engine, 3, 6)
    admit(engine, 4, 1)
    run_with(folders, told)
    assert folders.num_reads == 1  # those used last were kept
    assert engine.snapshot().num_adapters_dropped == 4


def test_adapters_in_use_stay_in_host_memory():
    engine, runner, _ = make_engine(2, in_memory=2)
    for id in (1, 2):
        engine.adapters.add(id, f"a{id}", Weights())
        admit(engine, id, id, max_tokens=20)
    told = run(engine, most=3)
    for id in (3, 4):
        engine.adapters.add(id, f"a{id}", Weights())
    assert engine.adapters.num_in_memory == 2
    assert {slot for slot, weights in runner.slots.items() if weights is not None} == {0, 1}
    folders = Folders(engine)
    admit(engine, 3, 3)
    told = run_with(folders, told)
    assert [len(told[id]) for id in (1, 2, 3)] == [20, 20, 4]
    assert folders.num_reads == 1


def test_adapter_that_can_not_be_read_again_fails_its_requests_alone():
    engine, _, _ = make_engine(2, in_memory=2)
    for id in (1, 2, 3):
        engine.adapters.add(id, f"a{id}", Weights())
    folders, told = Folders(engine, unreadable={1}), {}
    for id, adapter in ((1, 1), (2, 1), (3, 2), (4, 3)):
        admit(engine, id, adapter)
    run_with(folders, told)
    assert told[1] == told[2] == (FINISH_NO_ADAPTER, "gone")
    assert told[3] == told[4] == expected_tokens([1, 2, 3], 4)
    folders.unreadable = ()
    admit(engine, 5, 1)
    assert run_with(folders, told)[5] == expected_tokens([1, 2, 3], 4)


def test_adapter_that_is_unloaded_while_it_is_read_is_forgotten():
    engine, _, _ = make_engine(1, in_memory=1)
    for id in (1, 2):
        engine.adapters.add(id, f"a{id}", Weights())
    admit(engine, 1, 1)
    run(engine, most=2)
    [wanted] = engine.adapters.take_wanted()
    engine.abort((b"w", 1))
    engine.adapters.retire(1)
    engine.adapters.note_read(wanted.id, Weights())
    assert engine.adapters.give_up(wanted.id) == []
    assert engine.adapters.num_known == 1
    admit(engine, 2, 2)
    assert run_with(Folders(engine), {}) == {2: expected_tokens([1, 2, 3], 4)}


@pytest.mark.parametrize("seed", range(6))
def test_any_mix_of_requests_aborts_and_unloads_is_answered_within_memory(seed):
    random_from = random.Random(seed)
    num_slots = random_from.randint(1, 3)
    engine, _, clock = make_engine(num_slots, in_memory=num_slots + random_from.randint(0, 2))
    folders, told, aborted, next_id, known = Folders(engine), {}, set(), 0, []
    for _ in range(300):
        clock.now_s += PATIENCE_S / 5
        draw = random_from.random()
        if draw < 0.1 or not known:
            known.append(len(known) + 1)
            engine.adapters.add(known[-1], f"a{known[-1]}", Weights())
        elif draw < 0.15:
            engine.adapters.retire(random_from.choice(known))
        elif draw < 0.2 and next_id:
            aborted.add(random_from.randrange(next_id))
            engine.abort((b"w", max(aborted)))
        elif draw < 0.6:
            admit(engine, next_id, random_from.choice(known), max_tokens=random_from.randint(1, 9))
            next_id += 1
        run(engine, told, most=1)
        if random_from.random() < 0.3:
            folders.read()
    run_with(folders, told, random_from)
    complete = expected_tokens([1, 2, 3], 9)
    for id in set(range(next_id)) - aborted:
        answer = told[id]
        assert answer[0] == FINISH_NO_ADAPTER or answer == complete[: len(answer)]
