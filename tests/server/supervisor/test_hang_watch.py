"""The watch over heartbeats: real processes that stop, loop and recover."""

import logging
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from plugserve.core.wire.heartbeats import SILENT, STARTING, STOPPED, WELL, HangLimits, HeartbeatBoard
from plugserve.server.supervisor.hang_watch import HangWatch, Watched
from plugserve.server.supervisor.hung_stack import PluginFiles

LOOPS = """
import sys
from pathlib import Path
from plugserve.core.wire.stack_dump import write_stacks_to
write_stacks_to(Path(sys.argv[1]))
def goes_round():
    print("begun", flush=True)
    while True:
        pass
goes_round()
"""


class _Child:
    def __init__(self, process):
        self.process = process
        self.pid = process.pid

    def kill(self):
        self.process.kill()


@pytest.fixture
def child(tmp_path):
    command = [sys.executable, "-c", LOOPS, str(tmp_path / "stack")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    yield _Child(process)
    process.kill()
    process.wait()
    process.stdout.close()


class Scene:
    """One watched child whose slot the test writes; seconds_silent is how long ago it beat."""

    def __init__(self, tmp_path, child, limits):
        self.board = HeartbeatBoard.create(tmp_path / "heartbeats", 1, 0)
        self.slot = SimpleNamespace(child=child, failure=None)
        self.one = Watched("engine model=m", 1, self.slot, tmp_path / "stack")
        self.watch = HangWatch(self.board, limits, PluginFiles({}))
        self.watch.add(self.one)
        self.limits = limits
        self.fields = self.board._of(1)
        self.fields[0] = child.pid

    def beat(self, seconds_silent=0.0, phase=2):
        start = phase == STARTING
        self.fields[1], self.fields[2] = phase, time.monotonic() - seconds_silent
        self.fields[3] = self.limits.start_s if start else self.limits.silent_s
        self.fields[4] = self.limits.start_s if start else self.limits.replace_s

    async def look(self):
        self.watch._looked_s = time.monotonic()
        await self.watch.look()
        return self.board.read(1).cause


@pytest.fixture
def scene(tmp_path, child):
    return Scene(tmp_path, child, HangLimits(3.0, 60.0, 600.0))


async def test_a_loop_that_does_not_move_is_logged_once_with_its_stack(scene, caplog):
    scene.beat()
    assert await scene.look() == WELL
    scene.beat(seconds_silent=4)
    with caplog.at_level(logging.INFO):
        assert await scene.look() == SILENT
        assert await scene.look() == SILENT
    (record,) = caplog.records
    line = record.getMessage()
    assert "engine model=m hangs: no heartbeat for 4." in line
    assert "goes_round (" in line
    assert "plugin=none" in line
    assert "\n" not in line


async def test_one_that_moves_again_is_well(scene, caplog):
    scene.beat(seconds_silent=4)
    await scene.look()
    scene.beat()
    assert await scene.look() == WELL
    assert "responds again" in caplog.text
    assert scene.slot.failure is None


async def test_it_is_ended_after_the_limit_with_the_reason(scene, child):
    scene.beat(seconds_silent=61)
    await scene.look()
    assert child.process.wait(10) == -signal.SIGKILL
    assert "it hung: no heartbeat for 61" in scene.slot.failure.message
    assert "--engine-hang-timeout" in scene.slot.failure.message


async def test_it_is_ended_once(scene, child, caplog):
    scene.beat(seconds_silent=61)
    await scene.look()
    caplog.clear()
    await scene.look()
    assert not caplog.records


async def test_a_stopped_process_is_found_although_its_phase_allows_silence(scene, child, caplog):
    scene.beat(phase=STARTING)
    child.process.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while (cause := await scene.look()) == WELL and time.monotonic() < deadline:
        pass
    assert cause == STOPPED
    assert "the process is stopped" in caplog.text
    child.process.send_signal(signal.SIGCONT)
    while (cause := await scene.look()) != WELL and time.monotonic() < deadline:
        pass
    assert cause == WELL


async def test_a_long_start_is_no_hang_until_its_own_limit(scene, child):
    scene.beat(seconds_silent=500, phase=STARTING)
    assert await scene.look() == WELL
    scene.beat(seconds_silent=601, phase=STARTING)
    await scene.look()
    assert child.process.wait(10) == -signal.SIGKILL
    assert "--engine-start-timeout" in scene.slot.failure.message


async def test_zero_never_ends_a_process(tmp_path, child):
    scene = Scene(tmp_path, child, HangLimits.of(0.0, 0.0))
    scene.beat(seconds_silent=1e6)
    assert await scene.look() == SILENT
    assert child.process.poll() is None


async def test_after_the_supervisor_itself_stood_still_everything_gets_a_moment(scene):
    scene.beat(seconds_silent=100)
    scene.watch._looked_s = time.monotonic() - 50
    await scene.watch.look()
    assert scene.board.read(1).cause == WELL
