"""Queues of waiting sequences, in the order in which they start. A queue also ranks running sequences, so that one
order decides which starts first and which is preempted when memory runs out.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Protocol

from plugserve.core.contracts.scheduling import SequenceView

Rank = tuple[float, int]
"""Smaller goes first; the second entry is the sequence's id, which makes it an order without ties."""


class StartQueue(Protocol):
    """The policy of a scheduler."""

    ranks_change: bool
    """False: a sequence keeps its rank for life."""

    def add(self, view: SequenceView) -> None:
        """Add a sequence that arrived, or was preempted and must start again."""

    def first(self) -> SequenceView:
        """The sequence that may start next. Only called while one waits."""

    def take(self, view: SequenceView, num_tokens: int) -> None:
        """The first one starts; num_tokens are to be computed before it can generate."""

    def discard(self, view: SequenceView) -> bool:
        """Remove an ended sequence; True if it waited here. Called once for every sequence that ends, running or
        not."""

    def rank(self, view: SequenceView) -> Rank:
        """The place among running sequences: the first is scheduled first, and the last is preempted first."""

    def oldest_arrival_s(self) -> float:
        """The arrival time of the sequence that has waited longest. Only called while a sequence waits."""

    def gives_way(self, running: SequenceView, waiting: SequenceView) -> bool:
        """running is to be preempted so that waiting can start now."""

    def note_scheduled(self, scheduled: Sequence[tuple[int, int]]) -> None:
        """Note the (sequence id, number of tokens) pairs of the next step."""

    def __len__(self) -> int: ...


class SortedQueue:
    """A StartQueue by a rank that never changes. No running sequence gives way to a waiting one."""

    ranks_change = False

    def __init__(self) -> None:
        self._ranks: list[Rank] = []
        self._views: dict[int, SequenceView] = {}

    def rank(self, view: SequenceView) -> Rank:
        return (view.id, view.id)

    def add(self, view: SequenceView) -> None:
        insort(self._ranks, self.rank(view))
        self._views[view.id] = view

    def first(self) -> SequenceView:
        return self._views[self._ranks[0][1]]

    def take(self, view: SequenceView, num_tokens: int) -> None:
        self.discard(view)

    def discard(self, view: SequenceView) -> bool:
        if self._views.pop(view.id, None) is None:
            return False
        del self._ranks[bisect_left(self._ranks, self.rank(view))]
        return True

    def oldest_arrival_s(self) -> float:
        return next(iter(self._views.values())).arrival_s

    def gives_way(self, running: SequenceView, waiting: SequenceView) -> bool:
        return False

    def note_scheduled(self, scheduled: Sequence[tuple[int, int]]) -> None: ...

    def __len__(self) -> int:
        return len(self._views)
