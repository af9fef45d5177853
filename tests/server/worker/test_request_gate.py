"""Requests are counted from the moment they may use a model; those that come too early wait, and none is lost."""

import asyncio

import pytest

from plugserve.server.worker.request_gate import RequestGate


async def waiting(gate, count=1, timeout_s=None):
    tasks = [asyncio.create_task(gate.wait(timeout_s)) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def test_admitted_requests_are_counted_before_they_run():
    gate = RequestGate()
    tasks = await waiting(gate, 3)
    gate.admit_waiting()
    assert gate.num_requests == 3, "nothing may be taken away between admission and the first step of the task"
    await asyncio.gather(*tasks)
    idle = []
    gate.on_idle = lambda: idle.append(gate.num_requests)
    for _ in tasks:
        gate.end()
    assert idle == [0]


async def test_failure_reaches_all_that_wait_and_none_later():
    gate = RequestGate()
    tasks = await waiting(gate, 2)
    gate.fail_waiting(RuntimeError("why"))
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert str(outcome) == "why"
    later = await waiting(gate)
    gate.admit_waiting()
    await asyncio.gather(*later)
    assert gate.num_requests == 1


async def test_a_client_that_leaves_is_not_counted():
    gate = RequestGate()
    left, stays = await waiting(gate, 2)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    gate.admit_waiting()
    await stays
    assert gate.num_requests == 1


async def test_a_client_that_leaves_as_it_is_admitted_gives_its_place_back():
    gate = RequestGate()
    (task,) = await waiting(gate)
    gate.admit_waiting()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert gate.num_requests == 0


async def test_waiting_has_a_limit():
    gate = RequestGate()
    with pytest.raises(TimeoutError):
        await gate.wait(0.01)
    assert not gate.has_waiting
