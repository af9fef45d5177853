"""The heartbeat board: what one process writes, the others read."""

import os
import time

import pytest

from plugserve.core.wire.heartbeats import NEVER_S, SILENT, STARTING, STOPPED, WELL, HangLimits, HeartbeatBoard, Pulse


@pytest.fixture
def board(tmp_path):
    return HeartbeatBoard.create(tmp_path / "heartbeats", num_engines=2, num_workers=3)


def test_another_mapping_reads_what_a_process_wrote(board, tmp_path):
    other = HeartbeatBoard(tmp_path / "heartbeats")
    assert (other.num_engines, other.num_workers) == (2, 3)
    board.pulse(board.engine_slot(1), HangLimits()).begin()
    assert other.engine(1).pid == os.getpid()
    assert other.engine(1).phase == STARTING
    assert other.engine(0).pid == 0
    assert other.worker(0).pid == 0


def test_slots_do_not_overlap(board):
    slots = [board.engine_slot(i) for i in range(2)] + [board.worker_slot(i) for i in range(3)]
    assert sorted(slots) == [1, 2, 3, 4, 5]


def test_a_process_that_starts_may_be_silent_for_the_start_limit_alone(board):
    now = [time.monotonic() - 100]
    fields = board._of(1)
    pulse = Pulse(fields, HangLimits(start_s=1000.0), clock=lambda: now[0])
    pulse.begin()
    assert not board.read(1).is_unhealthy
    pulse.beat()
    assert board.read(1).is_unhealthy
    assert "no heartbeat for 100" in str(board.read(1))


def test_a_step_that_is_expected_to_be_long_is_no_hang(board):
    pulse = Pulse(board._of(1), HangLimits(), clock=lambda: time.monotonic() - 20)
    pulse.compute(expected_s=30.0)
    assert not board.read(1).is_unhealthy
    pulse.compute(expected_s=0.1)
    assert board.read(1).is_unhealthy


def test_a_long_step_is_unhealthy_after_the_hang_timeout_and_replaced_later_than_expected(board):
    pulse = Pulse(board._of(1), HangLimits(), clock=lambda: time.monotonic() - 61)
    pulse.compute(expected_s=500.0)
    assert board.read(1).is_unhealthy
    assert board.read(1).replace_s == 560.0


def test_a_leaving_process_is_never_late(board):
    pulse = Pulse(board._of(1), HangLimits(), clock=lambda: time.monotonic() - 1e6)
    pulse.leave()
    assert not board.read(1).is_unhealthy


def test_each_finding_counts_as_one_hang_until_the_process_is_well_again(board):
    for cause in (SILENT, SILENT, STOPPED, WELL, SILENT):
        board.note_cause(1, cause)
    assert board.read(1).num_hangs == 2
    assert board.read(1).is_unhealthy


def test_a_new_process_does_not_inherit_the_old_ones_findings(board):
    board.note_cause(1, SILENT)
    board.reset(1)
    assert not board.read(1).is_unhealthy
    assert board.read(1).num_hangs == 1


def test_zero_means_no_limit():
    limits = HangLimits.of(0.0, 0.0)
    assert (limits.replace_s, limits.start_s) == (NEVER_S, NEVER_S)
    assert limits.silent_s == 3.0


def test_a_short_hang_timeout_shortens_what_counts_as_unhealthy():
    assert HangLimits.of(1.0, 0.0).silent_s == 1.0


def test_the_file_is_written_whole_so_that_a_full_disk_raises_instead_of_killing(tmp_path):
    HeartbeatBoard.create(tmp_path / "heartbeats", 1, 1)
    assert (tmp_path / "heartbeats").stat().st_size == 3 * 80
    assert (tmp_path / "heartbeats").stat().st_blocks > 0
