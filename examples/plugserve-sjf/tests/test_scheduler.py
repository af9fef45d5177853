"""The scheduler's promises, tested on views that are plain data, without a model or an engine."""

from dataclasses import dataclass

from plugserve_sjf.options import SjfOptions
from plugserve_sjf.scheduler import SjfScheduler

from plugserve import Scheduler, StepBudget

BLOCK_SIZE = 16


@dataclass
class View:
    """A sequence whose steps are collected at once."""

    id: int
    num_prompt_tokens: int
    max_tokens: int = 10
    arrival_s: float = 0.0
    num_computed: int = 0
    num_in_flight_max: int = 0
    num_blocks: int = 0
    is_running: bool = False

    @property
    def max_num_tokens(self):
        return self.num_prompt_tokens + self.max_tokens

    @property
    def num_pending(self):
        return max(1, self.num_prompt_tokens - self.num_computed)

    @property
    def is_prefill(self):
        return self.num_pending > 1

    def num_new_blocks(self, num_tokens):
        return max(0, -(-(self.num_computed + num_tokens) // BLOCK_SIZE) - self.num_blocks)


def running(id, num_computed, **more):
    return View(
        id, num_computed, num_computed=num_computed, num_blocks=-(-num_computed // BLOCK_SIZE), is_running=True, **more
    )


def budget(now_s=0.0, num_tokens=64, num_seqs=8, num_free=100, num_releasing=0):
    return StepBudget(
        now_s=now_s,
        max_num_tokens=num_tokens,
        max_num_seqs=num_seqs,
        num_free_blocks=num_free,
        num_releasing_blocks=num_releasing,
        num_blocks=100,
        block_size=BLOCK_SIZE,
    )


def plan(views, options=None, **limits):
    scheduler = SjfScheduler(options or SjfOptions())
    for view in views:
        scheduler.add(view)
    return scheduler.schedule(budget(**limits))


def test_it_is_a_scheduler():
    assert isinstance(SjfScheduler(SjfOptions()), Scheduler)


def test_shortest_job_goes_first():
    assert plan([View(0, 40), View(1, 8), View(2, 20)]).scheduled == [(1, 8), (2, 20), (0, 36)]


def test_age_makes_long_jobs_shorter():
    old, new = View(0, 40, arrival_s=0), View(1, 8, arrival_s=2)
    assert plan([old, new], SjfOptions(aging_tokens=32), now_s=2).scheduled[0] == (0, 40)
    assert plan([old, new], SjfOptions(aging_tokens=0), now_s=2).scheduled[0] == (1, 8)


def test_overdue_job_goes_before_all_others():
    options = SjfOptions(aging_tokens=0, max_wait_s=5)
    assert plan([View(0, 400), View(1, 8, arrival_s=5)], options, now_s=6).scheduled == [(0, 64)]


def test_running_sequences_go_before_waiting_ones():
    assert plan([View(0, 1), running(1, 50)]).scheduled == [(1, 1), (0, 1)]


def test_token_budget_is_kept():
    assert plan([running(0, 20), View(1, 100), View(2, 200)], num_tokens=30).scheduled == [(0, 1), (1, 29)]


def test_sequence_budget_is_kept():
    assert plan([running(0, 20), View(1, 5), View(2, 6)], num_seqs=2).scheduled == [(0, 1), (1, 5)]


def test_job_starts_only_when_its_whole_prompt_fits():
    assert plan([View(0, 64)], num_tokens=16, num_free=3).scheduled == []
    assert plan([View(0, 64)], num_tokens=16, num_free=4).scheduled == [(0, 16)]


def test_longest_running_job_is_preempted():
    views = [running(0, 32, max_tokens=500), running(1, 32, max_tokens=20), running(2, 33)]
    got = plan(views, num_free=0)
    assert got.preempted == [0]
    assert dict(got.scheduled) == {2: 1, 1: 1}


def test_no_job_is_preempted_while_blocks_are_being_freed():
    got = plan([running(0, 32, max_tokens=500), running(1, 32)], num_free=0, num_releasing=2)
    assert (got.scheduled, got.preempted) == ([], [])


def test_preemption_stops_as_soon_as_there_is_room():
    views = [running(id, 32, max_tokens=100 * (id + 1)) for id in range(4)]
    assert plan(views, num_free=2).preempted == [3]


def test_block_of_a_step_in_flight_is_not_used_yet():
    victim = running(0, 32, max_tokens=500, num_in_flight_max=1)
    got = plan([victim, running(1, 32)], num_free=0)
    assert (got.scheduled, got.preempted) == ([], [0])


def test_only_running_job_is_not_preempted():
    assert plan([running(0, 32)], num_free=0).preempted == []


def test_removed_sequence_is_dropped():
    scheduler = SjfScheduler(SjfOptions())
    scheduler.add(View(0, 5))
    scheduler.remove(0)
    assert scheduler.schedule(budget()).scheduled == []
