"""Shortest job first, with ageing so that long jobs don't starve. Uses only plugserve's public contracts.

A job's length is the largest number of tokens that it may still compute: the rest of its prompt and of max_tokens.
Running sequences go first, the shortest first; then waiting ones while tokens, rows and blocks last. When blocks run
out, the longest running sequence is preempted.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from plugserve import SequenceView, StepBudget, StepPlan
from plugserve_sjf.options import SjfOptions


@dataclass(slots=True)
class _Step:
    """A step's plan and its remaining budget. num_releasing: blocks that the next plan can use."""

    num_tokens: int
    num_blocks: int
    num_releasing: int
    plan: StepPlan = field(default_factory=StepPlan)

    def schedule(self, view: SequenceView, num_tokens: int) -> None:
        self.plan.scheduled.append((view.id, num_tokens))
        self.num_tokens -= num_tokens
        self.num_blocks -= view.num_new_blocks(num_tokens)

    def preempt(self, view: SequenceView) -> None:
        """Its blocks are free at once, or after the step in flight that uses them."""
        self.plan.preempted.append(view.id)
        if view.num_in_flight_max:
            self.num_releasing += view.num_blocks
        else:
            self.num_blocks += view.num_blocks

    def will_have(self, num_blocks: int) -> bool:
        """True if num_blocks blocks are free, or will be after the step in flight."""
        return num_blocks <= self.num_blocks + self.num_releasing

    def set_aside(self, num_blocks: int) -> None:
        """Keep blocks for a sequence that waits for the rest of them."""
        missing = max(0, num_blocks - self.num_blocks)
        self.num_blocks = max(0, self.num_blocks - num_blocks)
        self.num_releasing = max(0, self.num_releasing - missing)


class SjfScheduler:
    """A plugserve.Scheduler. Sorts all living sequences once a step: O(n log n) in their number."""

    def __init__(self, options: SjfOptions) -> None:
        self._options = options
        self._views: dict[int, SequenceView] = {}

    def add(self, view: SequenceView) -> None:
        self._views[view.id] = view

    def remove(self, id: int) -> None:
        self._views.pop(id, None)

    def schedule(self, budget: StepBudget) -> StepPlan:
        step = _Step(budget.max_num_tokens, budget.num_free_blocks, budget.num_releasing_blocks)
        running = self._sorted(budget.now_s, (view for view in self._views.values() if view.is_running))
        self._continue(step, running)
        if not step.plan.preempted:
            waiting = self._sorted(budget.now_s, (view for view in self._views.values() if not view.is_running))
            self._admit(step, running, waiting, budget.max_num_seqs)
        return step.plan

    def _sorted(self, now_s: float, views: Iterable[SequenceView]) -> list[SequenceView]:
        return sorted(views, key=lambda view: self._rank(view, now_s))

    def _rank(self, view: SequenceView, now_s: float) -> tuple[int, float, int]:
        """Smaller goes first: overdue jobs in order of arrival, then the others by length less credit for age."""
        age_s = now_s - view.arrival_s
        if age_s > self._options.max_wait_s:
            return (0, view.arrival_s, view.id)
        length = view.max_num_tokens - view.num_computed - view.num_in_flight_max
        return (1, length - self._options.aging_tokens * age_s, view.id)

    def _continue(self, step: _Step, running: list[SequenceView]) -> None:
        """Schedule running sequences in order. Preempts from the end of the list, and removes the preempted from it."""
        position = 0
        while position < len(running) and step.num_tokens:
            view = running[position]
            num_tokens = min(view.num_pending, step.num_tokens)
            needed = view.num_new_blocks(num_tokens) if num_tokens else 0
            while not step.will_have(needed) and len(running) > position + 1:
                step.preempt(running.pop())
            if not step.will_have(needed) and position:
                step.preempt(running.pop())  # shorter jobs hold all other blocks
            elif needed > step.num_blocks:
                step.set_aside(needed)
            elif num_tokens:
                step.schedule(view, num_tokens)
            position += 1

    def _admit(self, step: _Step, running: list[SequenceView], waiting: list[SequenceView], max_num_seqs: int) -> None:
        """Start waiting jobs while each one's whole prompt, what running prompts still need, and one more block for
        every running sequence, fit. No job overtakes one that doesn't fit, which could starve it."""
        scheduled = dict(step.plan.scheduled)
        promised = sum(
            view.num_new_blocks(view.num_pending) - view.num_new_blocks(scheduled.get(view.id, 0))
            for view in running
            if view.is_prefill
        )
        num_running = len(running)
        for view in waiting:
            pending = view.num_pending
            if not pending:
                continue  # preempted, and its last step is still in flight
            needed = view.num_new_blocks(pending)
            if not step.num_tokens or num_running >= max_num_seqs or needed > step.num_blocks - promised - num_running:
                return
            num_tokens = min(pending, step.num_tokens)
            promised += needed - view.num_new_blocks(num_tokens)
            step.schedule(view, num_tokens)
            num_running += 1
