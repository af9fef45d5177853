"""Figures as computed by hand."""

from __future__ import annotations

import pytest

from plugserve.core.contracts import StepTime
from plugserve.core.trace_file import TraceRequest
from plugserve.simulate.figures import Targets, figures_of, jain_index, measured, percentile, table
from plugserve.simulate.simulation import Machine, Served

MACHINE = Machine(StepTime(base_s=1.0), 16, 100, 8, 100, 1000)


def served(arrival_s, ttft_s, tpot_s, tokens=3, user="ada"):
    request = TraceRequest(arrival_s=arrival_s, prompt_tokens=10, output_tokens=tokens, user=user)
    first_s = arrival_s + ttft_s
    return Served(request, tokens, first_s, first_s + tpot_s * (tokens - 1))


def test_percentiles_and_rates():
    rows = [served(n, ttft_s=n + 1.0, tpot_s=2.0) for n in range(4)]  # ends at 5, 7, 9, 11
    figures = figures_of("x", rows, MACHINE, Targets())
    assert (figures.ttft_p50_s, figures.ttft_p99_s, figures.tpot_p50_s) == (3.0, 4.0, 2.0)
    assert figures.output_tokens_per_s == pytest.approx(12 / 11)
    assert (figures.goodput, figures.good_requests_per_s) == (1.0, pytest.approx(4 / 11))


@pytest.mark.parametrize(
    ("targets", "goodput"),
    [(Targets(2.5, None), 0.5), (Targets(None, 1.5), 0.5), (Targets(2.5, 1.5), 0.25), (Targets(0.1, 0.1), 0.0)],
)
def test_goodput_counts_requests_that_meet_both_targets(targets, goodput):
    rows = [served(0, ttft, tpot) for ttft in (2.0, 3.0) for tpot in (1.0, 2.0)]
    assert figures_of("x", rows, MACHINE, targets).goodput == goodput


def test_request_that_failed_is_no_good_put():
    failed = served(0, 1.0, 1.0)
    failed.error, failed.first_s, failed.end_s = "refused", None, None
    figures = figures_of("x", [failed, served(0, 1.0, 1.0)], MACHINE, Targets())
    assert (figures.goodput, figures.num_failed) == (0.5, 1)


def test_single_token_has_no_time_per_token():
    figures = figures_of("x", [served(0, 1.0, 0.0, tokens=1)], MACHINE, Targets(tpot_s=0.001))
    assert (figures.tpot_p50_s, figures.goodput) == (None, 1.0)


def test_speed_and_fairness_compare_with_being_alone():
    """Alone, 3 tokens take 3 s. ada's requests take 3 s, bob's 6 s."""
    rows = [served(0, 1.0, 1.0), served(0, 2.0, 2.0, user="bob")]
    figures = figures_of("x", rows, MACHINE, Targets())
    assert [(user.user, user.speed) for user in figures.users] == [("ada", 1.0), ("bob", 0.5)]
    assert figures.fairness == pytest.approx(1.5**2 / (2 * 1.25))


def test_jain_index_is_one_for_equals_and_one_nth_for_one_who_has_all():
    assert jain_index([3.0, 3.0, 3.0]) == 1.0
    assert jain_index([1.0, 0.0, 0.0, 0.0]) == 0.25
    assert jain_index([]) == 1.0


def test_percentile_of_nothing_is_none():
    assert percentile([], 0.5) is None
    assert percentile([1.0, 2.0, 3.0], 0.5) == 2.0


def test_what_was_measured_is_a_row_of_its_own_only_when_all_of_it_was():
    one = TraceRequest(arrival_s=1.0, prompt_tokens=5, output_tokens=3, ttft_s=0.5, total_s=2.5, finish="stop")
    (row,) = measured([one])
    assert (row.ttft_s, row.tpot_s, row.end_s) == (0.5, 1.0, 3.5)
    without = TraceRequest(arrival_s=1.0, prompt_tokens=5, output_tokens=3)
    assert measured([one, without]) == []


def test_table_lines_up():
    lines = table([figures_of("a long name", [served(0, 1.0, 1.0)], MACHINE, Targets())]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split()[3:5] == ["1000", "1000"]
