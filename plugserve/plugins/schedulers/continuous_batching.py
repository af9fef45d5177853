"""Plans steps in the order of a queue: continuous batching with chunked prefill and preemption.

The built-in schedulers share it and differ in their StartQueue alone. Running sequences go first, then waiting ones
while tokens, rows and blocks last. Every running sequence gets its next token before prompts share the rest of the
step, and a prompt that doesn't fit is computed in chunks. When blocks run out, the last of those that run is preempted:
its blocks are freed, and it continues when there is room.
"""

from __future__ import annotations

from plugserve.core.contracts.scheduling import SequenceView, StepBudget, StepPlan
from plugserve.plugins.schedulers.pace import Pace
from plugserve.plugins.schedulers.remaining_budget import RemainingBudget
from plugserve.plugins.schedulers.start_queue import StartQueue


class ContinuousBatching:
    """A Scheduler in queue's order and at pace."""

    follows_pace = True

    def __init__(self, queue: StartQueue, pace: Pace) -> None:
        self._queue = queue
        self._pace = pace
        self._views: dict[int, SequenceView] = {}
        self._running: list[SequenceView] = []  # by rank
        self._is_sorted = True

    def add(self, view: SequenceView) -> None:
        self._views[view.id] = view
        self._queue.add(view)

    def remove(self, id: int) -> None:
        view = self._views.pop(id, None)
        if view is not None and not self._queue.discard(view):
            self._running = [other for other in self._running if other.id != id]

    def schedule(self, budget: StepBudget) -> StepPlan:
        plan, running = StepPlan(), self._running
        if self._queue.ranks_change or not self._is_sorted:
            running.sort(key=self._queue.rank)
            self._is_sorted = True
        pending = [view.num_pending for view in running]
        decoding = [
            view for view, count in zip(running, pending, strict=True) if count == 1 or (count and not view.is_prefill)
        ]
        remaining = self._remaining(budget, decoding)
        survivors = self._continue_running(plan, remaining, running[:], pending)
        if not plan.preempted and len(self._queue):
            self._admit_waiting(plan, remaining, survivors, budget)
        if plan.preempted:
            self._take_back(plan.preempted)
        self._queue.note_scheduled(plan.scheduled)
        return plan

    def _remaining(self, budget: StepBudget, decoding: list[SequenceView]) -> RemainingBudget:
        num_context = position = 0
        if self._pace.max_itl_s is not None:
            num_context = sum(view.num_tokens for view in decoding)
            position = max((view.num_computed for view in self._running if view.is_prefill), default=0)
        num_prompt_tokens = self._pace.num_prompt_tokens(budget, len(decoding), num_context, position)
        return RemainingBudget(
            budget.max_num_tokens, num_prompt_tokens, budget.num_free_blocks, budget.num_releasing_blocks
        )

    def _continue_running(
        self, plan: StepPlan, remaining: RemainingBudget, running: list[SequenceView], pending: list[int]
    ) -> list[SequenceView]:
        """Schedule running sequences in order, preempting from the end of running. Returns those not preempted."""
        position = 0
        while position < len(running) and remaining.num_tokens:
            view, count = running[position], pending[position]
            if count == 1 and (needed := view.num_new_blocks(1)) <= remaining.num_blocks:  # the usual case, made short
                plan.scheduled.append((view.id, 1))
                remaining.num_tokens -= 1
                remaining.num_blocks -= needed
                position += 1
                continue
            is_prompt = count > 1 and view.is_prefill
            count = min(count, remaining.num_prompt_tokens if is_prompt else remaining.num_tokens)
            needed = view.num_new_blocks(count) if count else 0
            while not remaining.will_have(needed) and len(running) - 1 > position:
                self._preempt(plan, remaining, running.pop())
            if not remaining.will_have(needed) and position > 0:
                # it is the last one, and those before it hold the memory
                self._preempt(plan, remaining, running.pop())
            elif needed > remaining.num_blocks:
                remaining.reserve(needed)
            elif count:
                plan.scheduled.append((view.id, count))
                remaining.spend(count, needed, for_prompt=is_prompt)
            position += 1
        return running

    def _preempt(self, plan: StepPlan, remaining: RemainingBudget, victim: SequenceView) -> None:
        plan.preempted.append(victim.id)
        if victim.num_in_flight_max:
            remaining.num_releasing += victim.num_blocks
        else:
            remaining.num_blocks += victim.num_blocks

    def _admit_waiting(
        self, plan: StepPlan, remaining: RemainingBudget, running: list[SequenceView], budget: StepBudget
    ) -> None:
        """Start waiting sequences in order. A sequence starts if its whole prompt fits into the free blocks, less one
        block for every other running sequence, which most of them need within half a block's steps. No sequence
        overtakes the first."""
        if running and not self._pace.may_start(budget, self._queue.oldest_arrival_s()):
            return
        remaining.num_blocks -= self._promised(plan, running)
        num_running = len(running)
        while len(self._queue):
            view = self._queue.first()
            pending = view.num_pending
            if not pending:
                return  # preempted, and its last step is still in flight
            needed = view.num_new_blocks(pending)
            if needed > remaining.num_blocks - num_running // 2 or num_running >= budget.max_num_seqs:
                self._make_way(plan, remaining, running, view, needed)
                return
            count = min(pending, remaining.num_prompt_tokens, remaining.num_tokens)
            if not count:
                return
            plan.scheduled.append((view.id, count))
            remaining.spend(count, needed, for_prompt=True)  # all of its prompt's blocks, though this step takes fewer
            self._queue.take(view, pending)
            self._running.append(view)
            self._is_sorted = False
            num_running += 1

    def _promised(self, plan: StepPlan, running: list[SequenceView]) -> int:
        """Blocks that the rest of the running prompts will need."""
        scheduled = dict(plan.scheduled)
        return sum(
            view.num_new_blocks(view.num_tokens - view.num_computed - view.num_in_flight_max)
            - view.num_new_blocks(scheduled.get(view.id, 0))
            for view in running
            if view.is_prefill
        )

    def _make_way(
        self,
        plan: StepPlan,
        remaining: RemainingBudget,
        running: list[SequenceView],
        waiting: SequenceView,
        needed: int,
    ) -> None:
        """Preempt those of running (from its end) that give way to waiting, if waiting can start then, which is in the
        next step, when their blocks are free. No sequence is preempted while the step in flight frees blocks."""
        if remaining.num_releasing:
            return
        victims: list[SequenceView] = []
        room = remaining.num_blocks
        for view in reversed(running):
            if not self._queue.gives_way(view, waiting):
                return
            victims.append(view)
            room += view.num_blocks
            if needed <= room - (len(running) - len(victims)) // 2:
                break
        else:
            return
        leaving = {view.id for view in victims}
        plan.scheduled = [entry for entry in plan.scheduled if entry[0] not in leaving]
        plan.preempted += leaving

    def _take_back(self, preempted: list[int]) -> None:
        """Put preempted sequences back into the queue."""
        leaving = set(preempted)
        self._running = [view for view in self._running if view.id not in leaving]
        for id in preempted:
            self._queue.add(self._views[id])
