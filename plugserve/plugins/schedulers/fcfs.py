"""First come, first served: sequences start in order of arrival, and the youngest gives way. The default scheduler."""

from __future__ import annotations

from collections.abc import Mapping

from plugserve.core.contracts.factories import SchedulerContext, SchedulerFactory
from plugserve.core.plugin_system.hookspecs import hookimpl
from plugserve.plugins.schedulers.continuous_batching import ContinuousBatching
from plugserve.plugins.schedulers.pace import Pace
from plugserve.plugins.schedulers.start_queue import SortedQueue


class FcfsScheduler(ContinuousBatching):
    """Scheduler in order of arrival; ids grow with it."""

    def __init__(self, pace: Pace | None = None) -> None:
        super().__init__(SortedQueue(), pace if pace is not None else Pace())


def make_fcfs(context: SchedulerContext) -> FcfsScheduler:
    return FcfsScheduler(Pace.of(context))


@hookimpl
def plugserve_schedulers() -> Mapping[str, SchedulerFactory]:
    return {"fcfs": make_fcfs}
