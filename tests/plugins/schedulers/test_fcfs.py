"""First come, first served: the order of arrival decides which request starts and which is preempted."""

from __future__ import annotations

from plugserve.plugins.schedulers.fcfs import FcfsScheduler
from tests.plugins.schedulers.views import SchedulerDriver, View


def test_sequences_start_in_order_of_arrival_whatever_their_priority():
    driver = SchedulerDriver(FcfsScheduler(), [View(0, 30, priority=9), View(1, 30, priority=-9), View(2, 30)])
    assert driver.plan(num_tokens=70).scheduled == [(0, 30), (1, 30), (2, 10)]


def test_no_request_overtakes_a_prompt_that_does_not_fit_yet():
    driver = SchedulerDriver(FcfsScheduler(), [View(0, 160), View(1, 5)])
    assert driver.plan(num_free=9).scheduled == []
    assert driver.plan(num_free=11, num_tokens=200).scheduled == [(0, 160), (1, 5)]


def test_youngest_is_preempted_and_keeps_its_place():
    driver = SchedulerDriver(FcfsScheduler(), [View(0, 32), View(1, 32), View(2, 32)])
    driver.plan(num_tokens=200)
    driver.add(View(3, 5))
    plan = driver.plan(num_free=1)
    assert plan.preempted == [2]
    assert plan.scheduled == [(0, 1), (1, 1)]
    assert [id for id, _ in driver.plan(num_tokens=200).scheduled] == [0, 1, 2, 3]
