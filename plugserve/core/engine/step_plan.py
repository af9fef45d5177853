"""Checks a scheduler's plan against the budget. Knows the rules, not the reasons.

O(length of the plan), always on: a scheduler plugin can be wrong without hurting memory that isn't its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from plugserve.core.contracts.scheduling import StepBudget, StepPlan
from plugserve.core.engine.sequence import Sequence
from plugserve.core.errors import PlanError


def check_plan(
    plan: StepPlan, budget: StepBudget, sequences: Mapping[int, Sequence], num_running: int, scheduler: str
) -> list[int]:
    """How many blocks each scheduled entry takes out of the free count, in order of the plan.

    Raises PlanError naming scheduler and the rule that plan breaks. sequences are all live ones by id, num_running how
    many of them run now.
    """

    def refuse(rule: str, sequence_id: int | None = None) -> PlanError:
        return PlanError(f"scheduler {scheduler!r} broke its contract: {rule}", sequence_id=sequence_id)

    if not isinstance(plan, StepPlan):
        raise refuse(f"schedule() returned {type(plan).__name__}, not a StepPlan")
    preempted = set(plan.preempted)
    if len(preempted) != len(plan.preempted):
        raise refuse("it preempts a sequence twice")
    for id in plan.preempted:
        sequence = sequences.get(id)
        if sequence is None:
            raise refuse(f"it preempts sequence {id}, which does not exist")
        if not sequence.is_running:
            raise refuse(f"it preempts sequence {id}, which is not running", id)

    num_running -= len(preempted)
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
        if id in preempted:
            raise refuse(f"it schedules and preempts sequence {id} in one step", id)
        seen.add(id)
        pending = sequence.num_pending
        if not 1 <= count <= pending:
            raise refuse(f"it schedules {count} tokens of sequence {id}, which can take 1 to {pending}", id)
        num_tokens += count
        num_running += not sequence.is_running
        needed = sequence.num_new_blocks(count)
        needs.append(needed)
        num_free -= needed
        if num_free < 0:
            raise refuse(f"it schedules sequence {id} without a free block for it", id)
    if num_tokens > budget.max_num_tokens:
        raise refuse(f"it schedules {num_tokens} tokens, the budget is {budget.max_num_tokens}")
    if num_running > budget.max_num_seqs:
        raise refuse(f"it lets {num_running} sequences run, the budget is {budget.max_num_seqs}")
    return needs


def _num_returned(plan: StepPlan, sequences: Mapping[int, Sequence]) -> int:
    """Blocks that the plan's preemptions free at once: those of sequences without a step in flight, less what others
    hold too and what a sequence that starts now takes as its cached prefix."""
    taken: set[int] = set()
    for id, _ in plan.scheduled:
        if id in sequences and not sequences[id].is_running:
            taken.update(sequences[id].match_prefix())
    return sum(
        block not in taken
        for id in plan.preempted
        if sequences[id].num_in_flight == 0
        for block in sequences[id].own_blocks
    )
