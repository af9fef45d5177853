"""Deficit round robin over users: shares, weights, debts and credit."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from plugserve.plugins.schedulers.fair import FairOptions, FairScheduler, payer
from tests.plugins.schedulers.views import SchedulerDriver, View


def driver_of(*views, **options):
    return SchedulerDriver(FairScheduler(FairOptions(**options)), views)


def ids(plan):
    return [id for id, _ in plan.scheduled]


def flood(user, first_id, count, **more):
    return [View(first_id + n, user=user, **more) for n in range(count)]


def run_to_completion(driver, num_generated, num_steps, **limits):
    """Like SchedulerDriver.serve, with sequences that end after num_generated tokens."""
    served = {}
    for _ in range(num_steps):
        for id, count in driver.plan(**limits).scheduled:
            view = driver.views[id]
            served[view.user] = served.get(view.user, 0) + count
            if view.num_computed >= view.num_prompt_tokens + num_generated:
                driver.remove(id)
    return served


def test_user_with_one_request_does_not_wait_for_anothers_hundred():
    driver = driver_of(*flood("ada", 0, 100, num_prompt_tokens=40), quantum_tokens=50)
    driver.plan(num_seqs=4)
    driver.add(View(200, 40, user="bob"))
    for id in (0, 1):
        driver.remove(id)
    assert 200 in ids(driver.plan(num_seqs=4))


def test_users_with_unequal_demand_get_equal_shares():
    """ada sends ten times as many requests, each four times as long."""
    driver = driver_of(*flood("ada", 0, 400, num_prompt_tokens=80), *flood("bob", 1000, 400, num_prompt_tokens=20))
    served = run_to_completion(driver, 10, 300, num_tokens=40, num_seqs=4)
    assert served["ada"] == pytest.approx(served["bob"], rel=0.1)


def test_generated_tokens_are_charged_like_prompts():
    """Equal prompts, but ada's answers are nine times as long."""
    driver = driver_of(*flood("ada", 0, 300), *flood("bob", 1000, 300), quantum_tokens=20, preemption_debt=0)
    served = {"ada": 0, "bob": 0}
    for _ in range(2000):
        for id, count in driver.plan(num_tokens=8, num_seqs=2).scheduled:
            view = driver.views[id]
            served[view.user] += count
            if view.num_computed >= view.num_prompt_tokens + (90 if view.user == "ada" else 10):
                driver.remove(id)
    assert served["ada"] == pytest.approx(served["bob"], rel=0.2)


def test_shares_follow_weights():
    driver = driver_of(*flood("ada", 0, 900), *flood("bob", 1000, 900), weights={"ada": 3}, quantum_tokens=30)
    served = run_to_completion(driver, 10, 500, num_tokens=16, num_seqs=4)
    assert served["ada"] == pytest.approx(3 * served["bob"], rel=0.1)


def test_tokens_used_while_no_user_waits_are_not_deducted():
    driver = driver_of(View(0, user="ada"), quantum_tokens=64)
    for _ in range(1000):
        driver.plan()
    driver.add(View(1, user="bob"))
    driver.plan()
    driver.add(*flood("ada", 10, 50, num_prompt_tokens=20), *flood("bob", 100, 50, num_prompt_tokens=20))
    served = run_to_completion(driver, 5, 60, num_tokens=16, num_seqs=4)
    assert served["ada"] == pytest.approx(served["bob"], rel=0.25)


def test_debt_remains_while_a_user_is_away_and_shrinks_by_rounds():
    driver = driver_of(View(0, 200, user="ada"), *flood("bob", 100, 40, num_prompt_tokens=20), quantum_tokens=20)
    driver.plan(num_tokens=1000, num_seqs=1)
    driver.remove(0)
    driver.add(View(1, 20, user="ada"))
    order = []
    for _ in range(20):
        (id,) = ids(driver.plan(num_seqs=1))
        order.append(id)
        driver.remove(id)
    assert 7 <= order.index(1) <= 11  # 200 tokens are ten rounds of bob's


def test_debts_end_when_no_sequence_is_left():
    driver = driver_of(View(0, 500, user="ada"))
    driver.plan(num_tokens=1000)
    driver.remove(0)
    driver.add(View(1, user="ada"), View(2, user="bob"))
    assert ids(driver.plan(num_seqs=1)) == [1]


def test_tokens_of_an_uncomputed_prompt_are_refunded():
    driver = driver_of(View(0, 5000, user="ada"), *flood("bob", 100, 40, num_prompt_tokens=20), quantum_tokens=20)
    driver.plan(num_seqs=1, num_tokens=30)
    driver.remove(0)
    driver.add(View(1, user="ada"))
    order = []
    for _ in range(10):
        order += ids(driver.plan(num_seqs=1))
        driver.remove(order[-1])
    assert order.index(1) <= 3


def test_recomputing_a_preempted_sequence_is_not_charged():
    driver = driver_of(View(0, 100, user="ada"), View(1, 100, user="bob"), quantum_tokens=200)
    driver.plan(num_tokens=500)
    assert driver.plan(num_free=0).preempted == []
    for view in driver.views.values():
        view.num_blocks = 6  # both need one now
    assert driver.plan(num_free=1).preempted == [1]
    driver.plan(num_tokens=500)
    queue = driver.scheduler._queue
    used = {name: account.used for name, account in queue._accounts.items()}
    assert used["ada"] - used["bob"] in (1, 2)


def test_user_who_has_used_most_is_preempted_when_blocks_run_out():
    driver = driver_of(View(0, 320, user="ada"), View(1, 16, user="bob"), View(2, 16, user="bob"))
    driver.plan(num_tokens=500)
    assert driver.plan(num_free=2).preempted == [0]


def test_flood_is_preempted_for_a_user_far_behind():
    driver = driver_of(*flood("ada", 0, 4, num_prompt_tokens=30), preemption_debt=100)
    for _ in range(60):
        driver.plan(num_seqs=4, num_tokens=200)
    driver.add(View(9, user="bob"))
    driver.plan(num_seqs=4)
    assert not driver.views[9].is_running
    preempted = []
    for _ in range(60):
        preempted += driver.plan(num_seqs=4).preempted
    assert driver.views[9].is_running
    assert preempted == [3]


def test_key_pays_for_all_its_users_unless_asked_otherwise():
    assert payer("key-1a2b3c4d/ada", "key") == "key-1a2b3c4d"
    assert payer("key-1a2b3c4d/ada", "user") == "key-1a2b3c4d/ada"
    assert payer("ada/x", "key") == "ada/x"
    assert payer("", "key") == ""


def test_accounts_of_users_without_requests_are_dropped():
    driver = driver_of(View(0, user="ada"), quantum_tokens=10)
    for id in range(1, 200):
        driver.add(View(id, 5, user=f"visitor {id}"))
        driver.plan()
        driver.remove(id)
    assert len(driver.scheduler._queue._accounts) < 20


@pytest.mark.parametrize("weight", [0, -1, float("inf")])
def test_invalid_weight_is_refused(weight):
    with pytest.raises(ValidationError):
        FairOptions(weights={"ada": weight})
