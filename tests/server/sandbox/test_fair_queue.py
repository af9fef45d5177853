"""Who is next, when many wait."""

import random

from plugserve.server.sandbox.fair_queue import FairQueue, Sender


def taken(queue, **options):
    order = []
    while (entry := queue.take(**options)) is not None:
        order.append(entry[0])
    return order


def queue_of(*entries):
    queue = FairQueue()
    for account, user, name in entries:
        queue.put(Sender(account, user), (name,))
    return queue


def test_an_account_with_many_entries_lets_others_in_between():
    queue = queue_of(*[("a", "", f"a{index}") for index in range(4)], ("b", "", "b0"), ("c", "", "c0"), ("b", "", "b1"))
    assert taken(queue) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]
    assert len(queue) == 0


def test_the_users_of_an_account_take_turns_and_share_its_turn():
    queue = queue_of(
        *[("gateway", "x", f"x{index}") for index in range(3)],
        ("gateway", "y", "y0"),
        *[("b", "", f"b{i}") for i in (0, 1)],
    )
    assert taken(queue) == ["x0", "b0", "y0", "b1", "x1", "x2"]


def test_users_that_a_client_makes_up_give_its_account_no_more_turns():
    queue = queue_of(*[("a", f"user {index}", f"a{index}") for index in range(5)], ("b", "", "b0"), ("b", "", "b1"))
    assert taken(queue)[:4] == ["a0", "b0", "a1", "b1"]


def test_a_busy_account_waits():
    queue = queue_of(("a", "", "a0"), ("b", "", "b0"), ("a", "", "a1"))
    assert taken(queue, busy={"a"}) == ["b0"]
    assert (len(queue), queue.num_waiting("a"), queue.num_waiting("b")) == (2, 2, 0)


def test_what_is_removed_is_not_taken():
    queue = FairQueue()
    entries = [(name,) for name in "abc"]
    for entry in entries:
        queue.put(Sender("x"), entry)
    assert queue.remove(Sender("x"), entries[1])
    assert not queue.remove(Sender("x"), entries[1])
    assert not queue.remove(Sender("y"), entries[0])
    assert taken(queue) == ["a", "c"]


def test_counts_hold_whatever_happens():
    seed, queue, waiting = random.Random(3), FairQueue(), {}
    for number in range(3000):
        sender = Sender(seed.choice("abc"), seed.choice("xy"))
        match seed.randrange(4):
            case 0 | 1:
                entry = (number,)
                queue.put(sender, entry)
                waiting[entry] = sender
            case 2:
                entry = queue.take()
                assert (entry is None) == (not waiting)
                waiting.pop(entry, None)
            case _:
                if waiting:
                    entry = seed.choice(list(waiting))
                    assert queue.remove(waiting.pop(entry), entry)
        assert len(queue) == len(waiting)
        assert queue.num_waiting("a") == sum(sender.account == "a" for sender in waiting.values())
