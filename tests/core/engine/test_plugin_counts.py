"""A scheduler's failures end its requests, not the engine, and are counted in the engine's stats."""

from __future__ import annotations

import pytest

from plugserve.testing import EngineDriver, PlainScheduler


class Leaves(PlainScheduler):
    """Exits in one of its calls, once."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def leave(self, call):
        if call == self.call:
            self.call = ""
            raise SystemExit(3)

    def add(self, view):
        super().add(view)
        self.leave("add")

    def schedule(self, budget):
        self.leave("schedule")
        return super().schedule(budget)


@pytest.mark.parametrize("call", ["add", "schedule"])
def test_exit_of_a_scheduler_fails_its_requests_and_no_others(call, caplog):
    driver = EngineDriver(Leaves(call))
    driver.send([1, 2, 3], 4)
    driver.run()
    driver.send([4, 5, 6], 4)
    driver.run()
    stats = driver.engine.snapshot()
    assert stats.plugin_errors == {"Leaves schedule": 1}
    assert stats.num_generated_tokens == 4
    assert "plugin=Leaves hook=schedule raised SystemExit: 3; it fails the requests" in caplog.text
