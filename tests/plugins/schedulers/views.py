"""Sequences and budgets as plain data, for schedulers without an engine."""

from __future__ import annotations

from dataclasses import dataclass

from plugserve import StepBudget, StepTime

BLOCK_SIZE = 16


@dataclass
class View:
    """A sequence whose steps are collected at once."""

    id: int
    num_prompt_tokens: int = 10
    priority: int = 0
    user: str = ""
    arrival_s: float = 0.0
    num_computed: int = 0
    num_in_flight_max: int = 0
    num_blocks: int = 0
    is_running: bool = False

    @property
    def num_tokens(self):
        return max(self.num_prompt_tokens, self.num_computed + 1)

    @property
    def num_pending(self):
        return max(1, self.num_prompt_tokens - self.num_computed)

    @property
    def is_prefill(self):
        return self.num_pending > 1

    def num_new_blocks(self, num_tokens):
        return max(0, -(-(self.num_computed + num_tokens) // BLOCK_SIZE) - self.num_blocks)


class SchedulerDriver:
    """Replaces the engine: applies each plan to the views at once."""

    def __init__(self, scheduler, views=()):
        self.scheduler = scheduler
        self.views = {}
        self.add(*views)

    def add(self, *views):
        for view in views:
            self.views[view.id] = view
            self.scheduler.add(view)

    def remove(self, id):
        self.scheduler.remove(id)
        del self.views[id]

    def plan(self, now_s=0.0, **limits):
        plan = self.scheduler.schedule(budget(now_s, **limits))
        for id in plan.preempted:
            view = self.views[id]
            view.is_running, view.num_computed, view.num_blocks = False, 0, 0
        for id, count in plan.scheduled:
            view = self.views[id]
            view.num_blocks += view.num_new_blocks(count)
            view.num_computed += count
            view.is_running = True
        return plan

    def serve(self, num_steps, **limits):
        """Tokens computed for each user in num_steps steps."""
        served = {}
        for _ in range(num_steps):
            for id, count in self.plan(**limits).scheduled:
                served[self.views[id].user] = served.get(self.views[id].user, 0) + count
        return served


def budget(now_s=0.0, num_tokens=64, num_seqs=8, num_free=1000, num_releasing=0, prompt_latency_s=0.0, step_time=None):
    return StepBudget(
        now_s=now_s,
        max_num_tokens=num_tokens,
        max_num_seqs=num_seqs,
        num_free_blocks=num_free,
        num_releasing_blocks=num_releasing,
        num_blocks=1000,
        block_size=BLOCK_SIZE,
        last_prompt_latency_s=prompt_latency_s,
        step_time=step_time or StepTime(),
    )
