"""First come, first served: the order of arrival decides who starts and who gives way."""

from __future__ import annotations

from plugserve.plugins.schedulers.fcfs import FcfsScheduler
from tests.plugins.schedulers.views import Desk, View


def test_sequences_start_in_order_of_arrival_whatever_their_priority():
    desk = Desk(FcfsScheduler(), [View(0, 30, priority=9), View(1, 30, priority=-9), View(2, 30)])
    assert desk.plan(num_tokens=70).scheduled == [(0, 30), (1, 30), (2, 10)]


def test_nobody_overtakes_a_prompt_that_does_not_fit_yet():
    desk = Desk(FcfsScheduler(), [View(0, 160), View(1, 5)])
    assert desk.plan(num_free=9).scheduled == []
    assert desk.plan(num_free=11, num_tokens=200).scheduled == [(0, 160), (1, 5)]


def test_youngest_gives_way_and_keeps_its_place():
    desk = Desk(FcfsScheduler(), [View(0, 32), View(1, 32), View(2, 32)])
    desk.plan(num_tokens=200)
    desk.add(View(3, 5))
    plan = desk.plan(num_free=1)
    assert plan.preempted == [2]
    assert plan.scheduled == [(0, 1), (1, 1)]
    assert [id for id, _ in desk.plan(num_tokens=200).scheduled] == [0, 1, 2, 3]
