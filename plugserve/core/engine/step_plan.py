"""Calls the scheduler plugin, checks its plans against the budget, and handles its exceptions.

The check is O(length of the plan) and always on: a wrong plan must not affect the blocks of other sequences.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.contracts.scheduling import Scheduler, StepBudget, StepPlan
from plugserve.core.engine.sequence import Sequence, SequenceHandle
from plugserve.core.errors import PlanError
from plugserve.core.plugin_system.failure_policy import STRATEGY_POLICIES
from plugserve.core.plugin_system.plugin_guard import PluginGuard

log = logging.getLogger(__name__)
_CALL = "schedule"


class UnusablePlanError(Exception):
    """The scheduler failed. sequence_ids are the sequences at fault, whose requests fail with message."""

    def __init__(self, message: str, sequence_ids: list[int]) -> None:
        super().__init__(message)
        self.sequence_ids = sequence_ids


class Planner:
    """The scheduler called name, of plugin; its time is counted in stats, its failures by guard."""

    def __init__(self, scheduler: Scheduler, name: str, plugin: str, stats: EngineStats, guard: PluginGuard) -> None:
        self._scheduler = scheduler
        self.name = name
        self._plugin = plugin or name
        self._key = f"{self._plugin} {_CALL}"
        self._guard = guard
        self._stats = stats
        stats.plugin_seconds[self._key] = 0.0
        stats.plugin_calls[self._key] = 0

    def add(self, sequence: Sequence) -> str:
        """A sequence may be scheduled from now on. Returns why it can't, "" if all is well."""
        try:
            self._scheduler.add(SequenceHandle(sequence))
        except BaseException as error:
            return self._note_error(error)
        return ""

    def remove(self, id: int) -> None:
        """The sequence has ended."""
        try:
            self._scheduler.remove(id)
        except BaseException as error:
            self._note_error(error)

    def plan(
        self, budget: StepBudget, sequences: Mapping[int, Sequence], num_running: int
    ) -> tuple[StepPlan, list[int]]:
        """The next step's plan, and the blocks that each scheduled entry takes out of the free count. Raises
        UnusablePlanError."""
        started_s = time.perf_counter()
        plan = StepPlan()
        try:
            plan = self._scheduler.schedule(budget)
            return plan, check_plan(plan, budget, sequences, num_running, self.name)
        except PlanError as error:
            log.error("plan refused error=%s", error)
            self._stats.num_plan_errors += 1
            raise UnusablePlanError(str(error), _guilty(error, plan, sequences)) from error
        except BaseException as error:
            raise UnusablePlanError(self._note_error(error), list(sequences)) from error
        finally:
            self._stats.plugin_seconds[self._key] += time.perf_counter() - started_s
            self._stats.plugin_calls[self._key] += 1

    def _note_error(self, error: BaseException) -> str:
        """Report the scheduler's exception; returns the error text of its requests."""
        self._guard.note_failure(self._plugin, _CALL, error, STRATEGY_POLICIES["scheduler"])
        self._stats.num_plan_errors += 1
        return f"scheduler {self.name!r} raised {type(error).__name__}"


def _guilty(error: PlanError, plan: StepPlan, sequences: Mapping[int, Sequence]) -> list[int]:
    """The sequence at fault; without one, all that the plan names; without any, all sequences."""
    ids = [error.sequence_id] if error.sequence_id is not None else []
    if not ids and isinstance(plan, StepPlan):
        ids = [id for id, _ in plan.scheduled] + plan.preempted
    return [id for id in dict.fromkeys(ids) if id in sequences] or list(sequences)


def check_plan(
    plan: StepPlan, budget: StepBudget, sequences: Mapping[int, Sequence], num_running: int, scheduler: str
) -> list[int]:
    """Check plan; returns the number of free blocks that each scheduled entry takes, in order of the plan.

    Raises PlanError naming scheduler and the rule that plan breaks. sequences are all live ones by id, num_running how
    many of them run now.
    """
    refuse = partial(_refusal, scheduler)
    if not isinstance(plan, StepPlan):
        raise refuse(f"schedule() returned {type(plan).__name__}, not a StepPlan")
    preempted = set(plan.preempted)
    if preempted:
        _check_preempted(plan, sequences, scheduler)
    # the others keep their rows until their step in flight is collected
    num_running -= sum(sequences[id].num_in_flight == 0 for id in preempted)
    num_free = budget.num_free_blocks + (_num_returned(plan, sequences) if preempted else 0)
    num_tokens = 0
    needs: list[int] = []
    seen: set[int] = set()
    for id, count in plan.scheduled:
        sequence = sequences.get(id)
        if sequence is None:
            raise refuse(f"it schedules sequence {id}, which does not exist")
        if id in seen:
            raise refuse(f"it schedules sequence {id} twice in one step", id)
        if preempted and id in preempted:
            raise refuse(f"it schedules and preempts sequence {id} in one step", id)
        seen.add(id)
        pending = sequence.pending if sequence.is_running else sequence.num_pending
        if not 1 <= count <= pending:
            raise refuse(f"it schedules {count} tokens of sequence {id}, which can take 1 to {pending}", id)
        num_tokens += count
        num_running += not sequence.is_running
        needed = sequence.num_new_blocks(count)
        needs.append(needed)
        if needed:
            num_free -= needed
            if num_free < 0:
                raise refuse(f"it schedules sequence {id} without a free block for it", id)
    if num_tokens > budget.max_num_tokens:
        raise refuse(f"it schedules {num_tokens} tokens, the budget is {budget.max_num_tokens}")
    if num_running > budget.max_num_seqs:
        raise refuse(f"it lets {num_running} sequences run, the budget is {budget.max_num_seqs}")
    return needs


def _refusal(scheduler: str, rule: str, sequence_id: int | None = None) -> PlanError:
    return PlanError(f"scheduler {scheduler!r} broke its contract: {rule}", sequence_id=sequence_id)


def _check_preempted(plan: StepPlan, sequences: Mapping[int, Sequence], scheduler: str) -> None:
    if len(set(plan.preempted)) != len(plan.preempted):
        raise _refusal(scheduler, "it preempts a sequence twice")
    for id in plan.preempted:
        sequence = sequences.get(id)
        if sequence is None:
            raise _refusal(scheduler, f"it preempts sequence {id}, which does not exist")
        if not sequence.is_running:
            raise _refusal(scheduler, f"it preempts sequence {id}, which is not running", id)


def _num_returned(plan: StepPlan, sequences: Mapping[int, Sequence]) -> int:
    """Blocks that the plan's preemptions free at once: those of sequences without a step in flight, less what others
    hold too and what a sequence that starts now takes as its cached prefix."""
    taken: set[int] = set()
    for id, _ in plan.scheduled:
        if id in sequences and not sequences[id].is_running:
            taken.update(sequences[id].prefix.match())
    return sum(
        block not in taken
        for id in plan.preempted
        if sequences[id].num_in_flight == 0
        for block in sequences[id].own_blocks
    )
