"""The conformance kit fails each scheduler that has a planted bug."""

from __future__ import annotations

import dataclasses

import pytest

from plugserve.core.contracts.scheduling import StepPlan
from plugserve.plugins.schedulers.fcfs import make_fcfs
from plugserve.testing import PlainScheduler, SchedulerConformance
from plugserve.testing.contexts import scheduler_context
from tests.testing.kit_runner import catches


class WrappedScheduler:
    """The fcfs scheduler; subclasses plant bugs in its inputs and outputs."""

    def __init__(self):
        self.inner = make_fcfs(scheduler_context())
        self.views = {}

    def add(self, view):
        self.views[view.id] = view
        self.inner.add(view)

    def remove(self, id):
        self.views.pop(id)
        self.inner.remove(id)

    def schedule(self, budget):
        return self.inner.schedule(budget)


class OverTokenBudget(WrappedScheduler):
    def schedule(self, budget):
        plan = self.inner.schedule(budget)
        if len(plan.scheduled) > 2:
            id, count = plan.scheduled[-1]
            view = self.views[id]
            more = min(view.num_pending, budget.max_num_tokens + 1)
            if view.num_new_blocks(more) == view.num_new_blocks(count):
                plan.scheduled[-1] = (id, more)
        return plan


class OverSequenceBudget(WrappedScheduler):
    def schedule(self, budget):
        return self.inner.schedule(dataclasses.replace(budget, max_num_seqs=budget.max_num_seqs + 1))


class OverBlockBudget(WrappedScheduler):
    def schedule(self, budget):
        return self.inner.schedule(dataclasses.replace(budget, num_free_blocks=budget.num_free_blocks + 1))


class ReusesTheFirstBudget(WrappedScheduler):
    first = None

    def schedule(self, budget):
        self.first = self.first or budget
        return self.inner.schedule(dataclasses.replace(budget, max_num_tokens=self.first.max_num_tokens))


class SchedulesTwice(WrappedScheduler):
    def schedule(self, budget):
        plan = self.inner.schedule(budget)
        if len(plan.scheduled) == 3:
            plan.scheduled.append(plan.scheduled[0])
        return plan


class SchedulesWhatItPreempts(WrappedScheduler):
    def schedule(self, budget):
        plan = self.inner.schedule(budget)
        if plan.preempted:
            plan.scheduled.append((plan.preempted[0], 1))
        return plan


class SortedScheduler(PlainScheduler):
    """Starts waiting sequences by key; a sequence that fits may overtake one that doesn't."""

    def key(self, view):
        return view.id

    def schedule(self, budget):
        plan, left, blocks = StepPlan(), budget.max_num_tokens, budget.num_free_blocks
        running = [view for view in self._views.values() if view.is_running]
        reserved = sum(-(-view.max_num_tokens // budget.block_size) for view in running)
        num_running = len(running)
        waiting = sorted((view for view in self._views.values() if not view.is_running), key=self.key)
        for view in running + waiting:
            count = min(view.num_pending, left)
            needed = view.num_new_blocks(count) if count else 0
            if not view.is_running:
                whole = -(-view.max_num_tokens // budget.block_size)
                if reserved + whole > budget.num_blocks or num_running >= budget.max_num_seqs:
                    continue
                reserved, num_running = reserved + whole, num_running + bool(count)
            if count and needed <= blocks:
                plan.scheduled.append((view.id, count))
                left, blocks = left - count, blocks - needed
        return plan


class NewestFirst(SortedScheduler):
    def key(self, view):
        return -view.id


class ShortestFirstWithoutAgeing(SortedScheduler):
    def key(self, view):
        return view.max_num_tokens, view.id


class PriorityWithoutAgeing(SortedScheduler):
    def key(self, view):
        return view.priority, view.id


class SmallOvertakesLarge(SortedScheduler):
    pass


class UnknownUsersLast(SortedScheduler):
    def key(self, view):
        return not view.user, view.id


class PromptsBeforeDecoding(WrappedScheduler):
    """Runs no decode while a prompt is left to compute."""

    def schedule(self, budget):
        plan = self.inner.schedule(budget)
        prompts = [(id, count) for id, count in plan.scheduled if self.views[id].is_prefill]
        return StepPlan(prompts or plan.scheduled, plan.preempted)


class KeepsRemovedViews(WrappedScheduler):
    def remove(self, id):
        self.inner.remove(id)

    def schedule(self, budget):
        plan = self.inner.schedule(budget)
        self.longest = max(view.num_tokens for view in self.views.values())
        return plan


class SchedulesARemovedSequence(WrappedScheduler):
    def remove(self, id):
        self.inner.remove(id)
        self.gone = id

    def schedule(self, budget):
        plan = self.inner.schedule(budget)
        if hasattr(self, "gone") and plan.scheduled:
            plan.scheduled.append((self.gone, 1))
            del self.gone
        return plan


class KeepsViews(WrappedScheduler):
    def __init__(self):
        super().__init__()
        self.history = []

    def add(self, view):
        self.history.append(view)
        super().add(view)


class WritesToViews(WrappedScheduler):
    def schedule(self, budget):
        for view in self.views.values():
            try:
                view.priority = 0
            except AttributeError:
                self.is_read_only = True
        return self.inner.schedule(budget)


class WritesToThePrivateSequence(WrappedScheduler):
    def schedule(self, budget):
        for view in self.views.values():
            sequence = getattr(view, "_sequence", None)
            if sequence is not None:
                sequence.priority = 0
        return self.inner.schedule(budget)


class OverwritesAViewsId(WrappedScheduler):
    def add(self, view):
        super().add(view)
        if len(self.views) > 2:
            object.__setattr__(view, "id", 0)


class EmptyPlanForTheLastSequence(WrappedScheduler):
    def schedule(self, budget):
        return StepPlan() if len(self.views) == 1 else self.inner.schedule(budget)


class RaisesSometimes(WrappedScheduler):
    def remove(self, id):
        super().remove(id)
        if id == 3:
            raise KeyError(id)


class ComputesPreemptedOnesAnew(WrappedScheduler):
    """Schedules all tokens of a sequence that was preempted, though host memory has most of them."""

    def __init__(self):
        super().__init__()
        self.preempted = set()

    def schedule(self, budget):
        plan = self.inner.schedule(budget)
        for i, (id, count) in enumerate(plan.scheduled):
            num_spare = budget.max_num_tokens - sum(count for _, count in plan.scheduled)
            if id in self.preempted and count == self.views[id].num_pending:
                plan.scheduled[i] = (id, min(self.views[id].num_tokens, count + num_spare))
        self.preempted = (self.preempted | set(plan.preempted)) - {id for id, _ in plan.scheduled}
        return plan


SCHEDULER_BUGS = [
    (OverTokenBudget, "budget is"),
    (OverSequenceBudget, "sequences run, the budget is"),
    (OverBlockBudget, "without a free block"),
    (ReusesTheFirstBudget, "tokens, the budget is"),
    (SchedulesTwice, "twice"),
    (SchedulesWhatItPreempts, "names a sequence twice"),
    (NewestFirst, "starvation"),
    (ShortestFirstWithoutAgeing, "starvation: a long prompt"),
    (PriorityWithoutAgeing, "starvation: a low priority"),
    (SmallOvertakesLarge, "starvation: one that needs most of the memory"),
    (UnknownUsersLast, "starvation: an unknown user"),
    (PromptsBeforeDecoding, "starvation: new prompts"),
    (KeepsRemovedViews, "after remove"),
    (SchedulesARemovedSequence, "removed"),
    (KeepsViews, "still holds"),
    (WritesToViews, "views are read-only"),
    (WritesToThePrivateSequence, "isn't part of SequenceView"),
    (OverwritesAViewsId, "by force"),
    (EmptyPlanForTheLastSequence, "not finished"),
    (RaisesSometimes, "raised"),
    (ComputesPreemptedOnesAnew, "which can take 1 to"),
]


@pytest.mark.parametrize(("scheduler", "word"), SCHEDULER_BUGS, ids=lambda value: getattr(value, "__name__", ""))
def test_scheduler_bug_is_caught(scheduler, word):
    class Case(SchedulerConformance):
        starvation_limit_s = 60.0

        def make_scheduler(self):
            return scheduler()

    assert catches(Case, word)
