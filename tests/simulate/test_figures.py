"""The simulation's figures equal hand-computed ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plugserve.core.contracts.scheduling import StepTime
from plugserve.core.wire.trace_file import TraceRequest
from plugserve.plugins.schedulers.fair import FairScheduler
from plugserve.plugins.schedulers.fcfs import FcfsScheduler
from plugserve.simulate.fair_share import MOST_USERS, FairShares
from plugserve.simulate.figures import (
    Targets,
    figures_of,
    jain_index,
    measured,
    percentile,
    simulated_figures,
    table,
)
from plugserve.simulate.simulation import Machine, Served, Simulation

MACHINE = Machine(StepTime(base_s=1.0), 16, 100, 8, 100, 1000)


SHARES = FairShares([], MACHINE, FcfsScheduler)


def shares_of(rows, **machine):
    return FairShares([one.request for one in rows], replace(MACHINE, **machine), FcfsScheduler)


def served(arrival_s, ttft_s, tpot_s, tokens=3, user="ada"):
    request = TraceRequest(arrival_s=arrival_s, prompt_tokens=10, output_tokens=tokens, user=user)
    first_s = arrival_s + ttft_s
    return Served(request, tokens, first_s, first_s + tpot_s * (tokens - 1))


def test_percentiles_and_rates():
    rows = [served(n, ttft_s=n + 1.0, tpot_s=2.0) for n in range(4)]  # ends at 5, 7, 9, 11
    figures = figures_of("x", rows, SHARES, Targets())
    assert (figures.ttft_p50_s, figures.ttft_p99_s, figures.tpot_p50_s) == (3.0, 4.0, 2.0)
    assert figures.output_tokens_per_s == pytest.approx(12 / 11)
    assert (figures.goodput, figures.good_requests_per_s) == (1.0, pytest.approx(4 / 11))


@pytest.mark.parametrize(
    ("targets", "goodput"),
    [(Targets(2.5, None), 0.5), (Targets(None, 1.5), 0.5), (Targets(2.5, 1.5), 0.25), (Targets(0.1, 0.1), 0.0)],
)
def test_goodput_counts_requests_that_meet_both_targets(targets, goodput):
    rows = [served(0, ttft, tpot) for ttft in (2.0, 3.0) for tpot in (1.0, 2.0)]
    assert figures_of("x", rows, SHARES, targets).goodput == goodput


def test_failed_request_does_not_count_as_goodput():
    failed = served(0, 1.0, 1.0)
    failed.error, failed.first_s, failed.end_s = "refused", None, None
    figures = figures_of("x", [failed, served(0, 1.0, 1.0)], SHARES, Targets())
    assert (figures.goodput, figures.num_failed) == (0.5, 1)


def test_single_token_has_no_time_per_token():
    figures = figures_of("x", [served(0, 1.0, 0.0, tokens=1)], SHARES, Targets(tpot_s=0.001))
    assert (figures.tpot_p50_s, figures.goodput) == (None, 1.0)


def test_share_and_fairness_compare_with_an_nth_of_the_machine():
    """Alone, 3 tokens take 3 s, so 6 s on half a machine. ada's request takes 3 s, bob's 12 s."""
    rows = [served(0, 1.0, 1.0), served(0, 4.0, 4.0, user="bob")]
    figures = figures_of("x", rows, shares_of(rows), Targets())
    assert [(user.user, user.share) for user in figures.users] == [("ada", 1.0), ("bob", pytest.approx(0.5))]
    assert figures.fairness == pytest.approx(1.5**2 / (2 * 1.25))


def test_user_that_waits_only_for_itself_has_its_full_share():
    """Three requests at once, in one row: on a separate machine they end after 3, 6 and 9 s."""
    rows = [served(0, 1.0, 1.0), served(0, 4.0, 1.0), served(0, 7.0, 1.0)]
    assert figures_of("x", rows, shares_of(rows, max_num_seqs=1), Targets()).users[0].share == 1.0
    late = [served(0, 1.0, 1.0), served(0, 4.0, 1.0), served(0, 25.0, 1.0)]
    share = figures_of("x", late, shares_of(late, max_num_seqs=1), Targets()).users[0].share
    assert share == pytest.approx(18 / 36, rel=0.15)  # a step in flight is lost at each end


def test_shares_cover_the_largest_users():
    rows = [served(0, 1.0, 1.0, user=f"user {n}") for n in range(MOST_USERS)] + [served(0, 1.0, 0.0, 1, "small")]
    users = figures_of("x", rows, shares_of(rows), Targets()).users
    assert [user.user for user in users if user.share is None] == ["small"]


def test_fair_scheduler_is_fairer_than_fcfs_to_a_user_beside_a_flood():
    machine = Machine(StepTime(0.01, 0.0005, 0.001), 16, 500, 4, 128, 1000)
    flood = [TraceRequest(arrival_s=0.0, prompt_tokens=200, output_tokens=50, user="flood") for _ in range(40)]
    light = [TraceRequest(arrival_s=1.0 + n, prompt_tokens=50, output_tokens=20, user="light") for n in range(8)]
    requests = sorted(flood + light, key=lambda one: one.arrival_s)
    shares = FairShares(requests, machine, FcfsScheduler)
    fcfs, fair = (
        simulated_figures("x", Simulation(machine, scheduler, "x").run(requests), shares, Targets()).fairness
        for scheduler in (FcfsScheduler(), FairScheduler())
    )
    assert fcfs < 0.7
    assert fair > 0.9


def test_jain_index_is_one_for_equal_shares_and_one_nth_for_a_single_user():
    assert jain_index([3.0, 3.0, 3.0]) == 1.0
    assert jain_index([1.0, 0.0, 0.0, 0.0]) == 0.25
    assert jain_index([]) == 1.0


def test_percentile_of_nothing_is_none():
    assert percentile([], 0.5) is None
    assert percentile([1.0, 2.0, 3.0], 0.5) == 2.0


def test_measured_row_needs_every_request_measured():
    one = TraceRequest(arrival_s=1.0, prompt_tokens=5, output_tokens=3, ttft_s=0.5, total_s=2.5, finish="stop")
    (row,) = measured([one])
    assert (row.ttft_s, row.tpot_s, row.end_s) == (0.5, 1.0, 3.5)
    without = TraceRequest(arrival_s=1.0, prompt_tokens=5, output_tokens=3)
    assert measured([one, without]) == []


def test_table_columns_are_aligned():
    lines = table([figures_of("a long name", [served(0, 1.0, 1.0)], SHARES, Targets())]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split()[3:5] == ["1000", "1000"]
