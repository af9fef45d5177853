"""A group places ranks where its executor says, hands them jobs without secrets, and its calls in order."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugserve.core.contracts.executor import RankPlace, RankPlaces
from plugserve.core.contracts.weights import ModelSource
from plugserve.core.engine.ranks.rank_group import RankGroup
from plugserve.core.engine.ranks.rank_order import decode_job
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.heartbeats import Pulse


class FakeExecutor:
    def __init__(self, on_message, on_end):
        self.on_message, self.on_end = on_message, on_end
        self.jobs, self.calls, self.is_stopped = [], [], False

    def place(self):
        return RankPlaces("tcp://10.0.0.1:7", (RankPlace("a", 0), RankPlace("a", 1), RankPlace("b", 0)))

    def start(self, jobs):
        self.jobs = [decode_job(job) for job in jobs]

    def send(self, call):
        self.calls.append(call)

    def stop(self):
        self.is_stopped = True


@pytest.fixture
def made():
    return []


@pytest.fixture
def group(made):
    def make(*callbacks):
        made.append(FakeExecutor(*callbacks))
        return made[0]

    settings = Settings(tensor_parallel_size=3, api_key=["secret"], log_file="/var/log/p.log", seed=7)
    source = ModelSource("tiny", (), "folder", Path("/models/tiny"))
    return RankGroup(settings, source, make, Pulse.unwatched(), lambda rank, end: made.append((rank, end)))


def test_ranks_are_placed_where_the_executor_says(group, made):
    group.start()
    placements = [group.placement(0), *(order.placement for _, order in made[0].jobs)]
    assert [(one.rank, one.num_ranks, one.local_rank) for one in placements] == [(0, 3, 0), (1, 3, 1), (2, 3, 0)]
    assert {one.rendezvous for one in placements} == {"tcp://10.0.0.1:7"}


def test_a_job_has_the_settings_without_secrets_and_without_another_machines_log_file(group, made):
    group.start()
    (here, order), (there, _) = made[0].jobs
    assert order.source.path == Path("/models/tiny")
    assert here.seed == there.seed == 7
    assert here.api_key == there.api_key == Settings().api_key
    assert (here.log_file, there.log_file) == ("/var/log/p.log", None)


def test_calls_and_the_end_go_through_the_executor(group, made):
    group.send([b"L", b"1"])
    group.stop()
    assert made[0].calls == [[b"L", b"1"]]
    assert made[0].is_stopped
