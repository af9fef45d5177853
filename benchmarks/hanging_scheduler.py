"""A scheduler that hangs on command: `--plugin benchmarks/hanging_scheduler.py --scheduler hangs-on-command`.

It schedules as the default does until the file named by HANG_FILE appears; then it removes the file and never returns.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from plugserve import SchedulerContext, SchedulerFactory, StepBudget, StepPlan, hookimpl
from plugserve.plugins.schedulers.fcfs import FcfsScheduler
from plugserve.plugins.schedulers.pace import Pace


class HangingScheduler(FcfsScheduler):
    """Watches for the file at every step."""

    def __init__(self, pace: Pace, command: Path) -> None:
        super().__init__(pace)
        self._command = command

    def schedule(self, budget: StepBudget) -> StepPlan:
        if self._command.exists():
            self._command.unlink()
            while True:
                pass
        return super().schedule(budget)


def make_hanging(context: SchedulerContext) -> HangingScheduler:
    return HangingScheduler(Pace.of(context), Path(os.environ["HANG_FILE"]))


@hookimpl
def plugserve_schedulers() -> Mapping[str, SchedulerFactory]:
    return {"hangs-on-command": make_hanging}
