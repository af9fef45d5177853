"""A rank that is silent is named, told to the supervisor's board, and its group ends after the limit."""

from __future__ import annotations

import logging
import threading

import msgspec
import pytest

from plugserve.core.engine.ranks.rank_calls import COLLECT
from plugserve.core.engine.ranks.rank_heart import LOADING, WAITING, Beat, RankHeart
from plugserve.core.engine.ranks.rank_watch import RankWatch
from plugserve.core.wire.heartbeats import HangLimits, HeartbeatBoard


class Watched:
    def __init__(self, tmp_path):
        self.now_s = 100.0
        self.board = HeartbeatBoard.create(tmp_path / "beats", 1, 0)
        self.pulse = self.board.pulse(1, HangLimits(3.0, 10.0, 60.0))
        self.pulse.beat()
        self.ended = []
        limits = HangLimits(3.0, 10.0, 60.0)
        self.watch = RankWatch(["a", "a", "b"], limits, self.pulse, lambda *end: self.ended.append(end), self.clock)

    def clock(self):
        return self.now_s

    def beat(self, *ranks, doing=WAITING):
        for rank in ranks:
            self.watch.note(rank, msgspec.json.encode(Beat(70 + rank, doing, 0.1)))

    def pass_s(self, seconds, *beating, doing=WAITING):
        for _ in range(int(seconds * 2)):
            self.now_s += 0.5
            self.beat(*beating, doing=doing)
            self.watch.look()


@pytest.fixture
def watched(tmp_path):
    return Watched(tmp_path)


def test_a_silent_rank_is_named_with_pid_and_node_and_ends_the_group_after_the_limit(watched, caplog):
    watched.beat(1, 2)
    watched.pass_s(4, 1)
    assert "rank 2 of 3 (pid 72 on b) hangs: no heartbeat for 3.5 s, replaced after 10 s" in caplog.text
    assert watched.board.engine(0).is_unhealthy
    assert str(watched.board.engine(0)) == "rank 2 (pid 72) hangs"
    assert not watched.ended
    watched.pass_s(8, 1)
    (rank, end), *_ = watched.ended
    assert rank == 2
    assert end.message.startswith("rank 2 of 3 (pid 72 on b) hung: no heartbeat for 10.5 s")


def test_a_rank_that_responds_again_is_well(watched):
    watched.beat(1, 2)
    watched.pass_s(5, 1)
    watched.pass_s(1, 1, 2)
    assert not watched.board.engine(0).is_unhealthy
    watched.pass_s(20, 1, 2)
    assert not watched.ended


def test_a_rank_that_loads_may_be_silent_for_as_long_as_a_start_takes(watched):
    watched.beat(1, doing=LOADING)
    watched.pass_s(50)
    assert not watched.board.engine(0).is_unhealthy


def test_a_machine_that_was_suspended_gives_ranks_another_round(watched):
    watched.beat(1, 2)
    watched.now_s += 100
    watched.watch.look()
    watched.pass_s(2, 1, 2)
    assert not watched.ended


def test_when_rank_0_is_late_the_log_says_what_each_rank_does(watched, caplog, monkeypatch):
    caplog.set_level(logging.WARNING)
    watched.watch.note(1, msgspec.json.encode(Beat(71, "collect", 4.0, "reduce (parallel/process_group.py:60)")))
    monkeypatch.setattr(type(watched.pulse), "is_late", True)
    watched.pass_s(1)
    assert caplog.text.count("rank 1 of 3 (pid 71 on a) is in collect for 4.0 s: reduce (parallel/process_g") == 1


def test_a_heart_says_what_its_thread_does(monkeypatch):
    sent = threading.Event()
    beats = []

    class Link:
        def send(self, message):
            beats.append(msgspec.json.decode(message, type=Beat))
            sent.set()

    heart = RankHeart(Link())
    assert heart.beat().doing == LOADING
    heart.begin(COLLECT)
    assert (heart.beat().doing, heart.beat().where) == ("collect", "")
    monkeypatch.setattr("plugserve.core.engine.ranks.rank_heart._LONG_S", 0.0)
    assert "test_a_heart_says_what_its_thread_does (ranks/test_rank_watch.py:" in heart.beat().where
    heart.end()
    heart.start()
    assert sent.wait(5)
    assert beats[0].doing == WAITING
