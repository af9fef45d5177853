"""A group places ranks where its executor says, hands them jobs without secrets, and its calls in order."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugserve.core.contracts.executor import RankPlace, RankPlaces
from plugserve.core.contracts.parallel import RankPlacement
from plugserve.core.contracts.runner import StepResult
from plugserve.core.contracts.sampling import TokenLogprobs
from plugserve.core.contracts.weights import ModelSource
from plugserve.core.engine.ranks.rank_calls import CLOSE, COLLECT, RepeatedCalls, decode_result, encode_result
from plugserve.core.engine.ranks.rank_group import RankGroup
from plugserve.core.engine.ranks.rank_heart import RankHeart
from plugserve.core.engine.ranks.rank_order import decode_job
from plugserve.core.engine.ranks.rank_process import follow
from plugserve.core.engine.ranks.shared_runner import SharedRunner
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


def test_results_of_a_pipeline_come_in_order_and_whole(made):
    def make(*callbacks):
        made.append(FakeExecutor(*callbacks))
        return made[0]

    source = ModelSource("tiny", (), "folder", Path("/models/tiny"))
    group = RankGroup(Settings(pipeline_parallel_size=3), source, make, Pulse.unwatched())
    assert [group.placement(rank).stage for rank in range(3)] == [0, 1, 2]
    scored = TokenLogprobs(5, -0.5, 1, [5, 6], [-0.5, -1.5])
    first = StepResult(7, [[5], []], 0.25, logprobs={0: [scored]}, prompt_logprobs={1: [scored]}, failed={1: "NaN"})
    second = StepResult(8, [[]], pooled={0: b"1234"})
    for result in (first, second):
        made[0].on_message(2, encode_result(result))
    assert [group.receive_result(), group.receive_result()] == [first, second]


class StageRunner:
    """Collects the same result at each call."""

    owns_attention = False

    def __init__(self, result):
        self.result = result

    def collect(self):
        return self.result

    def close(self): ...


class Link:
    def __init__(self):
        self.calls, self.sent = [[COLLECT], [CLOSE]], []

    def receive(self):
        return self.calls.pop(0)

    def send(self, message):
        self.sent.append(message)


@pytest.mark.parametrize(("rank", "is_sent"), [(1, False), (2, True), (3, False)])
def test_the_last_stages_first_rank_alone_sends_results(rank, is_sent):
    runner, link = StageRunner(StepResult(1, [[4]])), Link()
    follow(runner, RepeatedCalls(runner, None), link, RankHeart(link), RankPlacement(rank, 4, num_stages=2))
    assert [decode_result(message) for message in link.sent] == [StepResult(1, [[4]])] * is_sent


@pytest.mark.parametrize("has_failed", [False, True])
def test_a_stage_that_fails_an_entry_ends(has_failed):
    runner = StageRunner(StepResult(1, [[]], failed={0: "lost"}, has_failed=has_failed))
    with pytest.raises(RuntimeError, match="lost"):
        follow(runner, RepeatedCalls(runner, None), Link(), RankHeart(Link()), RankPlacement(1, 3, num_stages=3))


def test_rank_0_adds_what_failed_in_its_own_stage():
    class Group:
        is_pipeline = True

        def send(self, call): ...

        def receive_result(self):
            return StepResult(1, [[4], []], failed={1: "NaN"})

    own = StepResult(1, [[], []], failed={0: "no adapter"})
    assert SharedRunner(StageRunner(own), Group()).collect().failed == {0: "no adapter", 1: "NaN"}
