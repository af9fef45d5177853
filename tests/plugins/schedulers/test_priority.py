"""Order by priority, ageing, and preemption."""

from __future__ import annotations

import pytest

from plugserve.plugins.schedulers.priority import PriorityOptions, PriorityScheduler
from tests.plugins.schedulers.views import SchedulerDriver, View


def driver_of(*views, **options):
    return SchedulerDriver(PriorityScheduler(PriorityOptions(**options)), views)


def ids(plan):
    return [id for id, _ in plan.scheduled]


def test_lower_priority_number_starts_first():
    assert ids(driver_of(View(0, priority=5), View(1, priority=-1), View(2)).plan()) == [1, 2, 0]


def test_equal_priorities_start_in_order_of_arrival():
    assert ids(driver_of(View(0, arrival_s=1.0), View(1, arrival_s=2.0)).plan(3.0)) == [0, 1]


@pytest.mark.parametrize(("arrival_s", "order"), [(49.0, [1, 0]), (51.0, [0, 1])])
def test_waiting_makes_a_request_more_urgent_by_one_level_every_aging_s(arrival_s, order):
    old, new = View(0, priority=5), View(1, priority=0, arrival_s=arrival_s)
    assert ids(driver_of(old, new, aging_s=10).plan(arrival_s)) == order
    old, new = View(0, priority=5), View(1, priority=0, arrival_s=1e9)
    assert ids(driver_of(old, new, aging_s=0).plan(1e9)) == [1, 0]


def test_low_priority_starts_although_urgent_ones_keep_coming():
    """One row; one urgent request per second, each of which takes a second."""
    low = View(0, 4, priority=3)
    driver = driver_of(low, aging_s=10, preemption_gap=0)
    for second in range(1, 60):
        driver.add(View(second, 4, arrival_s=second - 0.5))
        done = ids(driver.plan(float(second), num_seqs=1))
        if 0 in done:
            break
        driver.remove(done[0])
    assert 29 <= second <= 32


def test_urgent_request_preempts_only_the_least_urgent_one():
    driver = driver_of(View(0, priority=1), View(1, priority=7), View(2, priority=4))
    driver.plan(num_seqs=3)
    driver.add(View(3, priority=0))
    plan = driver.plan(num_seqs=3)
    assert plan.preempted == [1]
    assert ids(plan) == [0, 2]
    assert ids(driver.plan(num_seqs=3)) == [0, 2, 3]


def test_urgent_request_preempts_for_as_many_blocks_as_it_needs():
    driver = driver_of(*(View(id, 32, priority=5) for id in range(4)))
    driver.plan(num_tokens=500)
    driver.add(View(9, 60, priority=0))
    assert sorted(driver.plan(num_free=5).preempted) == [2, 3]


def test_no_request_is_preempted_while_blocks_are_being_freed():
    driver = driver_of(View(0, priority=5), View(1, priority=5))
    driver.plan(num_seqs=2)
    driver.add(View(2, priority=0))
    assert driver.plan(num_seqs=2, num_releasing=1).preempted == []


def test_no_request_is_preempted_if_that_makes_too_little_room():
    driver = driver_of(View(0, 32, priority=5), View(1, 32, priority=0))
    driver.plan()
    driver.add(View(2, 300, priority=0))
    assert driver.plan(num_free=4).preempted == []


@pytest.mark.parametrize(("gap", "preempted"), [(0, []), (3, [0]), (4, [])])
def test_preemption_needs_the_configured_gap(gap, preempted):
    driver = driver_of(View(0, priority=3), preemption_gap=gap)
    driver.plan(num_seqs=1)
    driver.add(View(1, priority=0))
    assert driver.plan(num_seqs=1).preempted == preempted


def test_request_that_has_waited_long_enough_is_not_preempted():
    driver = driver_of(View(0, priority=3), aging_s=10)
    driver.plan(num_seqs=1)
    driver.add(View(1, priority=0, arrival_s=31.0))
    assert driver.plan(31.0, num_seqs=1).preempted == []


def test_least_urgent_is_preempted_when_blocks_run_out():
    driver = driver_of(View(0, 32, priority=5), View(1, 32, priority=0), View(2, 32, priority=1))
    driver.plan(num_tokens=500)
    assert driver.plan(num_free=1).preempted == [0]
