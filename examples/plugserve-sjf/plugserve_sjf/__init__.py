"""The plugin: its options and its scheduler, by name. scheduler.py holds the scheduler."""

from collections.abc import Callable, Mapping

from plugserve import Scheduler, SchedulerContext, hookimpl
from plugserve_sjf.options import SjfOptions
from plugserve_sjf.scheduler import SjfScheduler


def make_sjf(context: SchedulerContext) -> Scheduler:
    return SjfScheduler(context.options or SjfOptions())


@hookimpl
def plugserve_options() -> type[SjfOptions]:
    return SjfOptions


@hookimpl
def plugserve_schedulers() -> Mapping[str, Callable[[SchedulerContext], Scheduler]]:
    return {"sjf": make_sjf}
