"""A minimal correct scheduler, for tests of other parts: in order of arrival, without preemption or fairness.

A sequence starts only when blocks for all of its tokens are reserved, so none is ever preempted.
"""

from __future__ import annotations

from plugserve.core.contracts.scheduling import SequenceView, StepBudget, StepPlan


class PlainScheduler:
    """Scheduler in order of arrival, without preemption."""

    def __init__(self) -> None:
        self._views: dict[int, SequenceView] = {}

    def add(self, view: SequenceView) -> None:
        self._views[view.id] = view

    def remove(self, id: int) -> None:
        del self._views[id]

    def schedule(self, budget: StepBudget) -> StepPlan:
        plan = StepPlan()
        num_tokens, num_blocks = budget.max_num_tokens, budget.num_free_blocks
        num_reserved = 0
        views = sorted(self._views.values(), key=lambda view: (not view.is_running, view.id))
        for num_running, view in enumerate(views, start=1):
            num_reserved += -(-view.max_num_tokens // budget.block_size)
            if not view.is_running and (num_reserved > budget.num_blocks or num_running > budget.max_num_seqs):
                break
            count = min(view.num_pending, num_tokens)
            needed = view.num_new_blocks(count) if count else 0
            if not view.is_running and (not count or needed > num_blocks):
                break
            if count and needed <= num_blocks:
                plan.scheduled.append((view.id, count))
                num_tokens -= count
                num_blocks -= needed
        return plan
