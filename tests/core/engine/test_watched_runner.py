"""A watched runner: its steps are a phase of their own, with a limit that follows from the steps before."""

from dataclasses import dataclass, field
from typing import Any

from plugserve.core.contracts.runner import StepResult
from plugserve.core.engine.watched_runner import WatchedRunner


@dataclass
class _Info:
    weight_bytes: int = 0


class _Runner:
    owns_attention = False

    def __init__(self, pulse, duration_s):
        self.pulse, self.duration_s = pulse, duration_s

    def launch(self, step):
        self.pulse.seen.append("launch")

    def collect(self):
        self.pulse.seen.append("collect")
        return StepResult(0, tokens=[], duration_s=self.duration_s)

    def provide_masks(self, step_id, masks):
        pass

    def close(self):
        pass


@dataclass
class _Step:
    num_tokens: list[int]


@dataclass
class _Pulse:
    seen: list[Any] = field(default_factory=list)

    def beat(self):
        self.seen.append("beat")

    def compute(self, expected_s):
        self.seen.append(round(expected_s, 3))


def _run(runner, pulse, num_tokens):
    pulse.seen.clear()
    runner.launch(_Step([num_tokens]))
    runner.collect()
    return pulse.seen


def test_launch_and_collect_are_declared_as_computing():
    pulse = _Pulse()
    runner = WatchedRunner(_Runner(pulse, 0.01), _Info(), pulse)
    assert _run(runner, pulse, 1) == [0.0, "launch", "beat", 0.0, "collect", "beat"]


def test_the_limit_follows_from_the_slowest_step_a_token():
    pulse = _Pulse()
    runner = WatchedRunner(_Runner(pulse, 0.5), _Info(), pulse)
    _run(runner, pulse, 5)
    assert _run(runner, pulse, 100)[0] == 30.0


def test_before_the_first_step_the_limit_follows_from_the_weights():
    pulse = _Pulse()
    big = WatchedRunner(_Runner(pulse, 0.5), _Info(140 * 10**9), pulse)
    assert _run(big, pulse, 1)[0] > 400
    small = WatchedRunner(_Runner(pulse, 0.5), _Info(10**8), pulse)
    assert _run(small, pulse, 5)[0] < 3


def test_a_runner_that_raises_leaves_the_phase():
    pulse = _Pulse()
    inner = _Runner(pulse, 0.5)
    runner = WatchedRunner(inner, _Info(), pulse)
    inner.collect = lambda: 1 / 0
    runner.launch(_Step([1]))
    try:
        runner.collect()
    except ZeroDivisionError:
        assert pulse.seen[-1] == "beat"
    else:
        raise AssertionError("the runner's error was lost")
