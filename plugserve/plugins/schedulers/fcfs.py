"""First come, first served: continuous batching with chunked prefill. The default scheduler.

Running sequences go first, in order of arrival, then waiting ones while tokens, rows and blocks last. A prompt that
doesn't fit the token budget is computed in chunks over several steps. When blocks run out the youngest running
sequence is preempted: its blocks are given back, and it is computed anew as soon as there is room.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from plugserve.core.contracts import PluginContext, SchedulerFactory, SequenceView, StepBudget, StepPlan
from plugserve.core.hookspecs import hookimpl


@dataclass(slots=True)
class _Purse:
    """What is left of a budget. num_releasing: blocks on their way back, which the next plan can spend."""

    num_tokens: int
    num_blocks: int
    num_releasing: int

    def pay(self, num_tokens: int, num_blocks: int) -> None:
        self.num_tokens -= num_tokens
        self.num_blocks -= num_blocks

    def set_aside(self, num_blocks: int) -> None:
        """Keep blocks for somebody who has to wait for them, so that nobody younger takes them."""
        missing = max(0, num_blocks - self.num_blocks)
        self.num_blocks = max(0, self.num_blocks - num_blocks)
        self.num_releasing = max(0, self.num_releasing - missing)


class FcfsScheduler:
    """Scheduler in order of arrival. A preempted sequence keeps its place before all that have not started."""

    def __init__(self) -> None:
        self._running: dict[int, SequenceView] = {}
        self._preempted: list[SequenceView] = []  # sorted by id, that is by arrival
        self._waiting: dict[int, SequenceView] = {}

    def add(self, view: SequenceView) -> None:
        self._waiting[view.id] = view

    def remove(self, id: int) -> None:
        if self._running.pop(id, None) is None and self._waiting.pop(id, None) is None:
            self._preempted = [view for view in self._preempted if view.id != id]

    def schedule(self, budget: StepBudget) -> StepPlan:
        plan = StepPlan()
        purse = _Purse(budget.max_num_tokens, budget.num_free_blocks, budget.num_releasing_blocks)
        running = [self._running[id] for id in sorted(self._running)]
        survivors = self._continue_running(plan, purse, running)
        if not plan.preempted and (self._waiting or self._preempted):
            self._admit_waiting(plan, purse, survivors, budget.max_num_seqs)
        self._settle(plan)
        return plan

    def _continue_running(self, plan: StepPlan, purse: _Purse, running: list[SequenceView]) -> list[SequenceView]:
        """Schedule running sequences, oldest first, preempting from the young end. Returns those not preempted."""
        position = 0
        while position < len(running) and purse.num_tokens:
            view = running[position]
            count = min(view.num_pending, purse.num_tokens)
            needed = view.num_new_blocks(count) if count else 0
            if count and needed <= purse.num_blocks:
                plan.scheduled.append((view.id, count))
                purse.pay(count, needed)
                position += 1
                continue
            while needed > purse.num_blocks + purse.num_releasing and len(running) - 1 > position:
                self._preempt(plan, purse, running.pop())
            if needed > purse.num_blocks + purse.num_releasing and position > 0:
                self._preempt(plan, purse, running.pop())  # it is the youngest left, and older ones hold the memory
            elif needed > purse.num_blocks:
                purse.set_aside(needed)
            elif count:  # preemption made room
                plan.scheduled.append((view.id, count))
                purse.pay(count, needed)
            position += 1
        return running

    def _preempt(self, plan: StepPlan, purse: _Purse, victim: SequenceView) -> None:
        plan.preempted.append(victim.id)
        if victim.num_in_flight_max:
            purse.num_releasing += victim.num_blocks
        else:
            purse.num_blocks += victim.num_blocks

    def _admit_waiting(self, plan: StepPlan, purse: _Purse, running: list[SequenceView], max_num_seqs: int) -> None:
        """Start waiting sequences in order, while the whole prompt of each finds room beside one more block for every
        other running sequence (so many need one within half a block's steps). Nobody overtakes the oldest, but while
        that one only waits for what is being computed already."""
        scheduled = dict(plan.scheduled)
        promised = sum(
            view.num_new_blocks(view.num_pending) - view.num_new_blocks(scheduled.get(view.id, 0))
            for view in running
            if view.is_prefill
        )
        num_running = len(running)
        for view in self._queue():
            pending = view.num_pending
            if not pending and not view.num_in_flight_max:
                continue  # a running sequence computes the prefix that it waits for
            needed = view.num_new_blocks(pending) if pending else 0
            room = purse.num_blocks - promised - num_running // 2
            if not (purse.num_tokens and num_running < max_num_seqs and pending and needed <= room):
                break
            count = min(pending, purse.num_tokens)
            plan.scheduled.append((view.id, count))
            purse.pay(count, needed)  # all of its prompt's blocks, though this step takes those of one chunk only
            num_running += 1

    def _queue(self) -> Iterator[SequenceView]:
        return chain(self._preempted, self._waiting.values())

    def _settle(self, plan: StepPlan) -> None:
        """Move sequences between the queues as plan says."""
        for id in plan.preempted:
            insort(self._preempted, self._running.pop(id), key=lambda view: view.id)
        for id, _ in plan.scheduled:
            if id in self._running:
                continue
            view = self._waiting.pop(id, None)
            if view is None:
                view = self._preempted.pop(next(i for i, view in enumerate(self._preempted) if view.id == id))
            self._running[id] = view


def make_fcfs(context: PluginContext) -> FcfsScheduler:
    return FcfsScheduler()


@hookimpl
def plugserve_schedulers() -> Mapping[str, SchedulerFactory]:
    return {"fcfs": make_fcfs}
