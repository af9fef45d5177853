"""The pool of sandboxes: slow work of one sender doesn't delay other senders."""

import asyncio

import pytest

from plugserve.core.errors import QueueFullError, RequestError
from plugserve.server.sandbox.fair_queue import Sender
from plugserve.server.sandbox.sandbox_pool import SandboxPool

ENDLESS = (
    "{% if messages[0].role == 'bad' %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    "{% endif %}{{ messages[0].content }}"
)
MALLORY, ALICE = Sender("mallory"), Sender("alice")


def question(content, role="user"):
    fields = {"messages": [{"role": role, "content": content}], "tools": None, "kwargs": {}}
    return {**fields, "add_generation_prompt": True, "continue_final_message": False}


SLOW = question("", "bad")


@pytest.fixture
async def make_pool():
    made = []

    def make(**options):
        options = {"timeout_s": 60.0, **options}
        made.append(
            SandboxPool("plugserve.server.sandbox.template_process", {"template": ENDLESS}, name="work", **options)
        )
        return made[-1]

    yield make
    for pool in made:
        await pool.close()


async def text_of(work):
    return (await work)["text"]


async def under_way(*tasks):
    """Let tasks get into the queue."""
    for _ in range(5):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


async def test_an_account_with_slow_work_leaves_a_process_to_others(make_pool):
    pool = make_pool()
    slow = [asyncio.create_task(pool.ask(SLOW, MALLORY)) for _ in range(5)]
    await under_way(*slow)
    assert await text_of(pool.ask(question("quick"), ALICE)) == "quick"
    assert not any(task.done() for task in slow)


async def test_work_for_clients_who_left_makes_room_at_once(make_pool):
    """A question's limit is a minute here: no waiting sender is delayed by work of a sender who left."""
    pool = make_pool()
    for sender in (MALLORY, Sender("mallory 2"), Sender("mallory 3")):
        slow = [asyncio.create_task(pool.ask(SLOW, sender)) for _ in range(7)]
        await under_way(*slow)
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
    assert await text_of(pool.ask(question("quick"), MALLORY)) == "quick"
    assert await text_of(pool.ask(question("quick"), ALICE)) == "quick"


async def test_work_that_nobody_wants_goes_on_while_nobody_waits(make_pool):
    pool = make_pool(num_processes=1)
    await pool.start()
    child = pool.process
    left = asyncio.create_task(pool.ask(question("left"), ALICE))
    await under_way(left)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    while pool._under_way:
        await asyncio.sleep(0.01)
    assert pool.process is child
    assert await text_of(pool.ask(question("stays"), ALICE)) == "stays"


async def test_leaving_before_the_work_begins_loses_no_process(make_pool):
    pool = make_pool(num_processes=1)
    for number in range(30):
        leaving = [asyncio.create_task(pool.ask(question("left"), ALICE)) for _ in range(3)]
        for _ in range(number % 4):
            await asyncio.sleep(0)
        for task in leaving:
            task.cancel()
        assert await text_of(pool.ask(question(f"stays {number}"), ALICE)) == f"stays {number}"


async def test_accounts_take_turns(make_pool):
    pool = make_pool(num_processes=1)
    order = []

    async def ask(name, sender):
        await pool.ask(question(name), sender)
        order.append(name)

    asked = [asyncio.create_task(ask(f"m{index}", MALLORY)) for index in range(6)]
    asked.append(asyncio.create_task(ask("a", ALICE)))
    await asyncio.gather(*asked)
    assert order.index("a") <= 2


async def test_the_queue_is_bounded_for_an_account_and_for_all(make_pool):
    pool = make_pool(num_processes=1, max_waiting=5, max_waiting_per_account=3)
    slow = [asyncio.create_task(pool.ask(SLOW, MALLORY)) for _ in range(4)]
    await under_way(*slow)
    with pytest.raises(QueueFullError, match="3 of your requests wait for a work"):
        await pool.ask(question("one too many"), MALLORY)
    waiting = [asyncio.create_task(pool.ask(question("a"), ALICE)) for _ in range(2)]
    await under_way(*waiting)
    with pytest.raises(QueueFullError, match="5 requests wait"):
        await pool.ask(question("b"), Sender("bob"))
    for task in slow:
        task.cancel()
    assert [await text_of(task) for task in waiting] == ["a", "a"]


async def test_clients_who_left_leave_their_places_in_the_queue(make_pool):
    pool = make_pool(num_processes=1, max_waiting=3, max_waiting_per_account=2)
    working = asyncio.create_task(pool.ask(SLOW, ALICE))
    waiting = [asyncio.create_task(pool.ask(SLOW, MALLORY)) for _ in range(2)]
    await under_way(working, *waiting)
    with pytest.raises(QueueFullError):
        await pool.ask(SLOW, MALLORY)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert len(pool._waiting) == 0
    working.cancel()
    assert await text_of(pool.ask(question("next"), MALLORY)) == "next"


async def test_an_answer_that_was_found_meanwhile_needs_no_work(make_pool):
    pool = make_pool(num_processes=1)
    assert await pool.ask(SLOW, ALICE, lambda: {"text": "known"}) == {"text": "known"}


async def test_closing_ends_what_waits_and_what_is_under_way(make_pool):
    pool = make_pool()
    asked = [asyncio.create_task(pool.ask(SLOW, sender)) for sender in (MALLORY, MALLORY, ALICE)]
    await under_way(*asked)
    await pool.close()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers)
    with pytest.raises(RequestError, match="shutting down"):
        await pool.ask(question("late"))
