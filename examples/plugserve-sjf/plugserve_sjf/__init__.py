"""The plugin: its options and its scheduler, by name. scheduler.py holds the scheduler."""

from collections.abc import Callable, Mapping

from plugserve import PluginContext, Scheduler, hookimpl
from plugserve_sjf.options import SjfOptions
from plugserve_sjf.scheduler import SjfScheduler


def make_sjf(context: PluginContext) -> Scheduler:
    return SjfScheduler(context.options or SjfOptions())


@hookimpl
def plugserve_options() -> type[SjfOptions]:
    return SjfOptions


@hookimpl
def plugserve_schedulers() -> Mapping[str, Callable[[PluginContext], Scheduler]]:
    return {"sjf": make_sjf}
