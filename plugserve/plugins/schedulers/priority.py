"""The most urgent first (`--scheduler priority`): by the request's priority, where lower is more urgent.

Waiting makes a sequence more urgent, one level every aging_s seconds. As all of them age alike, the order of any two
never changes, and each becomes the most urgent one in the end. The least urgent is preempted when memory runs out, and
also when one that is more urgent by preemption_gap levels can't start for lack of rows or blocks.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from plugserve.core.contracts.factories import SchedulerContext, SchedulerFactory
from plugserve.core.contracts.scheduling import SequenceView
from plugserve.core.plugin_system.hookspecs import hookimpl
from plugserve.plugins.schedulers.continuous_batching import ContinuousBatching
from plugserve.plugins.schedulers.pace import Pace
from plugserve.plugins.schedulers.start_queue import Rank, SortedQueue


class PriorityOptions(BaseModel):
    """Options of `--scheduler priority`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    aging_s: float = Field(
        default=10,
        ge=0,
        allow_inf_nan=False,
        description="Seconds of waiting that make a request one level more urgent; 0 never does, so that low "
        "priorities may wait forever.",
    )
    preemption_gap: int = Field(
        default=1,
        ge=0,
        description="A request that can't start preempts running ones that are less urgent by this many levels; 0 "
        "preempts none for that.",
    )


class PriorityQueue(SortedQueue):
    """Sorted by the moment at which a sequence would have arrived had it been of priority 0; without ageing by
    priority, then arrival."""

    def __init__(self, options: PriorityOptions) -> None:
        super().__init__()
        self._aging_s = options.aging_s
        self._gap = options.preemption_gap

    def rank(self, view: SequenceView) -> Rank:
        if not self._aging_s:
            return (view.priority, view.id)
        return (view.priority * self._aging_s + view.arrival_s, view.id)

    def gives_way(self, running: SequenceView, waiting: SequenceView) -> bool:
        if not self._gap or running.priority - waiting.priority < self._gap:
            return False
        return self.rank(running) > self.rank(waiting)


class PriorityScheduler(ContinuousBatching):
    """Scheduler in order of urgency."""

    def __init__(self, options: PriorityOptions | None = None, pace: Pace | None = None) -> None:
        queue = PriorityQueue(options if options is not None else PriorityOptions())
        super().__init__(queue, pace if pace is not None else Pace())


def make_priority(context: SchedulerContext) -> PriorityScheduler:
    return PriorityScheduler(context.options, Pace.of(context))


@hookimpl
def plugserve_options() -> type[PriorityOptions]:
    return PriorityOptions


@hookimpl
def plugserve_schedulers() -> Mapping[str, SchedulerFactory]:
    return {"priority": make_priority}
