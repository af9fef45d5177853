"""Deficit round robin over users: shares, weights, debts and credit."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from plugserve.plugins.schedulers.fair import FairOptions, FairScheduler, payer
from tests.plugins.schedulers.views import Desk, View


def desk_of(*views, **options):
    return Desk(FairScheduler(FairOptions(**options)), views)


def ids(plan):
    return [id for id, _ in plan.scheduled]


def flood(user, first_id, count, **more):
    return [View(first_id + n, user=user, **more) for n in range(count)]


def run_to_completion(desk, num_generated, num_steps, **limits):
    """Like Desk.serve, with sequences that end after num_generated tokens."""
    served = {}
    for _ in range(num_steps):
        for id, count in desk.plan(**limits).scheduled:
            view = desk.views[id]
            served[view.user] = served.get(view.user, 0) + count
            if view.num_computed >= view.num_prompt_tokens + num_generated:
                desk.remove(id)
    return served


def test_user_with_one_request_does_not_stand_behind_anothers_hundred():
    desk = desk_of(*flood("ada", 0, 100, num_prompt_tokens=40), quantum_tokens=50)
    desk.plan(num_seqs=4)
    desk.add(View(200, 40, user="bob"))
    for id in (0, 1):
        desk.remove(id)
    assert 200 in ids(desk.plan(num_seqs=4))


def test_users_with_unequal_demand_get_equal_shares():
    """ada sends ten times as many requests, each four times as long."""
    desk = desk_of(*flood("ada", 0, 400, num_prompt_tokens=80), *flood("bob", 1000, 400, num_prompt_tokens=20))
    served = run_to_completion(desk, 10, 300, num_tokens=40, num_seqs=4)
    assert served["ada"] == pytest.approx(served["bob"], rel=0.1)


def test_generated_tokens_are_charged_like_prompts():
    """Equal prompts, but ada's answers are nine times as long."""
    desk = desk_of(*flood("ada", 0, 300), *flood("bob", 1000, 300), quantum_tokens=20, preemption_debt=0)
    served = {"ada": 0, "bob": 0}
    for _ in range(2000):
        for id, count in desk.plan(num_tokens=8, num_seqs=2).scheduled:
            view = desk.views[id]
            served[view.user] += count
            if view.num_computed >= view.num_prompt_tokens + (90 if view.user == "ada" else 10):
                desk.remove(id)
    assert served["ada"] == pytest.approx(served["bob"], rel=0.2)


def test_weights_share_as_they_say():
    desk = desk_of(*flood("ada", 0, 900), *flood("bob", 1000, 900), weights={"ada": 3}, quantum_tokens=30)
    served = run_to_completion(desk, 10, 500, num_tokens=16, num_seqs=4)
    assert served["ada"] == pytest.approx(3 * served["bob"], rel=0.1)


def test_what_was_used_while_nobody_waited_is_no_debt():
    desk = desk_of(View(0, user="ada"), quantum_tokens=64)
    for _ in range(1000):
        desk.plan()
    desk.add(View(1, user="bob"))
    desk.plan()
    desk.add(*flood("ada", 10, 50, num_prompt_tokens=20), *flood("bob", 100, 50, num_prompt_tokens=20))
    served = run_to_completion(desk, 5, 60, num_tokens=16, num_seqs=4)
    assert served["ada"] == pytest.approx(served["bob"], rel=0.25)


def test_debt_outlives_absence_and_is_paid_by_rounds():
    desk = desk_of(View(0, 200, user="ada"), *flood("bob", 100, 40, num_prompt_tokens=20), quantum_tokens=20)
    desk.plan(num_tokens=1000, num_seqs=1)
    desk.remove(0)
    desk.add(View(1, 20, user="ada"))
    order = []
    for _ in range(20):
        (id,) = ids(desk.plan(num_seqs=1))
        order.append(id)
        desk.remove(id)
    assert 7 <= order.index(1) <= 11  # 200 tokens are ten rounds of bob's


def test_everything_is_forgiven_when_nobody_is_left():
    desk = desk_of(View(0, 500, user="ada"))
    desk.plan(num_tokens=1000)
    desk.remove(0)
    desk.add(View(1, user="ada"), View(2, user="bob"))
    assert ids(desk.plan(num_seqs=1)) == [1]


def test_prompt_that_was_not_computed_is_given_back():
    desk = desk_of(View(0, 5000, user="ada"), *flood("bob", 100, 40, num_prompt_tokens=20), quantum_tokens=20)
    desk.plan(num_seqs=1, num_tokens=30)
    desk.remove(0)
    desk.add(View(1, user="ada"))
    order = []
    for _ in range(10):
        order += ids(desk.plan(num_seqs=1))
        desk.remove(order[-1])
    assert order.index(1) <= 3


def test_recomputing_a_preempted_sequence_is_not_charged():
    desk = desk_of(View(0, 100, user="ada"), View(1, 100, user="bob"), quantum_tokens=200)
    desk.plan(num_tokens=500)
    assert desk.plan(num_free=0).preempted == []
    for view in desk.views.values():
        view.num_blocks = 6  # both need one now
    assert desk.plan(num_free=1).preempted == [1]
    desk.plan(num_tokens=500)
    queue = desk.scheduler._queue
    used = {name: account.used for name, account in queue._accounts.items()}
    assert used["ada"] - used["bob"] in (1, 2)


def test_user_who_has_used_most_gives_way_when_blocks_run_out():
    desk = desk_of(View(0, 320, user="ada"), View(1, 16, user="bob"), View(2, 16, user="bob"))
    desk.plan(num_tokens=500)
    assert desk.plan(num_free=2).preempted == [0]


def test_long_flood_gives_rows_back_to_a_user_far_behind():
    desk = desk_of(*flood("ada", 0, 4, num_prompt_tokens=30), preemption_debt=100)
    for _ in range(60):
        desk.plan(num_seqs=4, num_tokens=200)
    desk.add(View(9, user="bob"))
    desk.plan(num_seqs=4)
    assert not desk.views[9].is_running
    preempted = []
    for _ in range(60):
        preempted += desk.plan(num_seqs=4).preempted
    assert desk.views[9].is_running
    assert preempted == [3]


def test_key_pays_for_all_its_users_unless_asked_otherwise():
    assert payer("key-1a2b3c4d/ada", "key") == "key-1a2b3c4d"
    assert payer("key-1a2b3c4d/ada", "user") == "key-1a2b3c4d/ada"
    assert payer("ada/x", "key") == "ada/x"
    assert payer("", "key") == ""


def test_accounts_of_the_absent_do_not_pile_up():
    desk = desk_of(View(0, user="ada"), quantum_tokens=10)
    for id in range(1, 200):
        desk.add(View(id, 5, user=f"visitor {id}"))
        desk.plan()
        desk.remove(id)
    assert len(desk.scheduler._queue._accounts) < 20


@pytest.mark.parametrize("weight", [0, -1, float("inf")])
def test_weight_that_is_none_is_refused(weight):
    with pytest.raises(ValidationError):
        FairOptions(weights={"ada": weight})
