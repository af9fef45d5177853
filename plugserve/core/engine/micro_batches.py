"""Groups of running sequences that take turns, one a step, so that the stages of a pipeline compute different groups at
the same time (micro-batches; GPipe, Huang et al. 2019). Torch-free.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from plugserve.core.contracts.scheduling import StepTime
from plugserve.core.engine.batch import Batch
from plugserve.core.engine.sequence import Sequence


class OneGroup:
    """Without a pipeline: every step may hold every sequence, and one runs while the next is planned."""

    depth = 1

    def join(self, sequence: Sequence) -> None: ...

    def leave(self, sequence: Sequence) -> None: ...

    def turns(self, num_waiting: int) -> Iterable[None]:
        return (None,)

    def num_startable(self, num_free_rows: int) -> int:
        return num_free_rows

    def step_time(self, fit: StepTime) -> StepTime:
        return fit


class MicroBatches:
    """num_groups groups, of which one has the turn. launched are the batches in flight, oldest first.

    Outside its turn a sequence has nothing pending, so a scheduler plans only those that have it; it may preempt all of
    them. A sequence joins the group that has the turn when it starts. When groups differ by more than one sequence and
    those that arrived had their turns, sequences move from the larger to the smaller; such a one may have a step in
    flight when its new group runs.
    """

    def __init__(self, num_groups: int, launched: deque[Batch]) -> None:
        self._groups: list[dict[int, Sequence]] = [{} for _ in range(num_groups)]
        self._group_of: dict[int, int] = {}
        self._launched = launched
        self._turn = 0
        self._num_waiting = 0
        self._num_turns_to_start = 0  # left to those that arrived, before running ones are moved

    @property
    def depth(self) -> int:
        """The number of steps in flight while the next is planned: one a group, whose next step needs the tokens of its
        last one; one a stage after a step that draws nothing, whose sequences go on without waiting for tokens."""
        if self._launched and not any(self._launched[-1].samples):
            return len(self._groups)
        return max(1, self._num_active)

    @property
    def _num_active(self) -> int:
        return sum(1 for group in self._groups if group)

    def join(self, sequence: Sequence) -> None:
        """The sequence starts."""
        self._groups[self._turn][sequence.id] = sequence
        self._group_of[sequence.id] = self._turn

    def leave(self, sequence: Sequence) -> None:
        """It no longer runs."""
        del self._groups[self._group_of.pop(sequence.id)][sequence.id]

    def turns(self, num_waiting: int) -> Iterator[None]:
        """Give the turn to each group that has sequences, or room for waiting ones, from the next one on. The caller
        plans a step for each until one has something to do."""
        first, num_groups = self._turn + 1, len(self._groups)
        if num_waiting > self._num_waiting:
            self._num_turns_to_start = num_groups
        self._num_waiting = num_waiting
        if self._num_turns_to_start:
            self._num_turns_to_start -= 1
        else:
            self._balance()
        for turn in range(first, first + num_groups):
            self._turn = turn % num_groups
            if self._groups[self._turn] or (num_waiting and self._room > 0):
                self._settle()
                yield

    def _balance(self) -> None:
        while True:
            sizes = [len(group) for group in self._groups]
            if max(sizes) - min(sizes) < 2:
                return
            moved = next(reversed(self._groups[sizes.index(max(sizes))].values()))
            self.leave(moved)
            smallest = sizes.index(min(sizes))
            self._groups[smallest][moved.id] = moved
            self._group_of[moved.id] = smallest

    @property
    def _room(self) -> int:
        """How many sequences the group may have more, of all that run and wait."""
        num_all = len(self._group_of) + self._num_waiting
        return -(-num_all // len(self._groups)) - len(self._groups[self._turn])

    def _settle(self) -> None:
        """Set what is pending. A draw that waits for its mask must be over before its sequence's next step begins."""
        masked = {batch.sequences[b].id for batch in self._launched for b in batch.constrained}
        for number, group in enumerate(self._groups):
            for sequence in group.values():
                sequence.pending = 0
                if number == self._turn and sequence.id not in masked:
                    sequence.settle()

    def num_startable(self, num_free_rows: int) -> int:
        """How many waiting sequences the group that has the turn may start."""
        return max(0, min(num_free_rows, self._room))

    def step_time(self, fit: StepTime) -> StepTime:
        """The time from a group's step to its next, which the steps of the other groups take part in."""
        n = max(1, self._num_active)
        return StepTime(n * fit.base_s, n * fit.per_token_s, n * fit.per_row_s, n * fit.per_pair_s)
