"""The comparison's verdicts, without a server."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "simulate_vs_real.py"


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("simulate_vs_real", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_ranking_names_ties(program):
    values = {"a": 10.0, "b": 20.0, "c": 10.05}
    assert program.ranking(values, is_descending=True) == "b > c = a"
    assert program.ranking(values, is_descending=False) == "a = c > b"


def test_rankings_agree_where_the_simulation_has_one(program):
    simulated = {"a": 10.0, "b": 20.0, "c": 10.05}
    assert program.agree(simulated, {"a": 9.0, "b": 30.0, "c": 8.0})
    assert not program.agree(simulated, {"a": 9.0, "b": 8.5, "c": 8.0})


def test_workload_is_the_same_each_time_and_in_order(program):
    jobs = program.workload(1, 2, 5, 4.0)
    assert jobs == program.workload(1, 2, 5, 4.0)
    assert [job.at_s for job in jobs] == sorted(job.at_s for job in jobs)
    assert [job.user for job in jobs].count("batch") == 2
