"""Wraps a scheduler under test and records every breach of its contract, also those whose exception it catches."""

from __future__ import annotations

import dataclasses
import random
import weakref
from typing import Any

from plugserve.core.contracts.scheduling import Scheduler, SequenceView, StepBudget, StepPlan

VIEW_NAMES = tuple(name for name in vars(SequenceView) if not name.startswith("_"))
_COUNTS = tuple(name for name in VIEW_NAMES if name != "num_new_blocks")


@dataclasses.dataclass(slots=True)
class _Watch:
    view: SequenceView
    breaches: list[str]
    is_gone: bool = False
    proxy: weakref.ref[WatchedView] | None = None  # the scheduler's view


class WatchedView:
    """A SequenceView that records writes, use after remove, and access to names outside SequenceView."""

    __slots__ = ("__weakref__", "_watch", "id")
    id: int

    def __init__(self, watch: _Watch) -> None:
        object.__setattr__(self, "_watch", watch)
        object.__setattr__(
            self, "id", watch.view.id
        )  # a real attribute, as in core's view, so that object.__setattr__ changes it
        watch.proxy = weakref.ref(self)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        watch: _Watch = object.__getattribute__(self, "_watch")
        if name not in VIEW_NAMES:
            watch.breaches.append(f"it reads {name!r} of a sequence view, which isn't part of SequenceView")
            raise AttributeError(f"a SequenceView has no {name!r}")
        if watch.is_gone and name != "id":
            watch.breaches.append(f"it reads {name!r} of sequence {watch.view.id} after remove({watch.view.id})")
        return getattr(watch.view, name)

    def __setattr__(self, name: str, value: object) -> None:
        watch: _Watch = object.__getattribute__(self, "_watch")
        watch.breaches.append(f"it sets {name!r} of a sequence view; views are read-only")
        raise AttributeError(f"a sequence view is read-only: {name} can't be set")

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def __repr__(self) -> str:
        return f"<view {object.__getattribute__(self, '_watch').view!r}>"


class WatchedScheduler:
    """A Scheduler around another. breaches lists its faults in order. shrinks_budget gives it a smaller token budget
    than core does, a different one each step."""

    def __init__(self, inner: Scheduler, *, shrinks_budget: bool = False) -> None:
        self.breaches: list[str] = []
        self.views: list[weakref.ref[WatchedView]] = []
        self._inner = inner
        self._watches: dict[int, _Watch] = {}
        self._draw = random.Random(0) if shrinks_budget else None

    def add(self, view: SequenceView) -> None:
        watch = self._watches[view.id] = _Watch(view, self.breaches)
        watched = WatchedView(watch)
        self.views.append(weakref.ref(watched))
        before = self._counts()
        self._inner.add(watched)
        self._compare(before, "add")

    def remove(self, id: int) -> None:
        watch = self._watches.pop(id)
        before = self._counts()
        try:
            self._inner.remove(id)
        except Exception as error:
            self.breaches.append(f"remove({id}) raised {type(error).__name__}: {error}")
            raise
        finally:
            watch.is_gone = True
        self._compare(before, "remove")

    def schedule(self, budget: StepBudget) -> StepPlan:
        if self._draw is not None:
            budget = dataclasses.replace(budget, max_num_tokens=self._draw.randint(1, budget.max_num_tokens))
        before, copy = self._counts(), dataclasses.replace(budget)
        plan = self._inner.schedule(budget)
        if not isinstance(plan, StepPlan):
            self.breaches.append(f"schedule returned {type(plan).__name__}, not a StepPlan")  # type: ignore[unreachable]
            return plan
        self._compare(before, "schedule")
        if budget != copy:
            self.breaches.append("schedule changed its budget")
        self._check(plan, budget)
        return plan

    def _counts(self) -> dict[int, tuple[Any, ...]]:
        """The counts of every view by sequence id."""
        return {id: tuple(getattr(watch.view, name) for name in _COUNTS) for id, watch in self._watches.items()}

    def _compare(self, before: dict[int, tuple[Any, ...]], call: str) -> None:
        for id, watch in self._watches.items():
            proxy = watch.proxy() if watch.proxy is not None else None
            if proxy is not None and object.__getattribute__(proxy, "id") != id:
                self.breaches.append(f"{call} changed the id of sequence {id} by force; views are read-only")
                object.__setattr__(proxy, "id", id)
        for id, counts in self._counts().items():
            for name, old, new in zip(_COUNTS, before.get(id, counts), counts, strict=True):
                if old != new:
                    self.breaches.append(f"{call} changed {name} of sequence {id} from {old!r} to {new!r}")

    def _check(self, plan: StepPlan, budget: StepBudget) -> None:
        """Checks the plan against the budget of this step, by the rules that core enforces too."""
        num_tokens = sum(count for _, count in plan.scheduled)
        if num_tokens > budget.max_num_tokens:
            self.breaches.append(f"it schedules {num_tokens} tokens, the budget is {budget.max_num_tokens}")
        ids = [id for id, _ in plan.scheduled] + plan.preempted
        for id in ids:
            if id not in self._watches:
                self.breaches.append(f"it plans sequence {id}, which was removed or never added")
        if len(set(ids)) != len(ids):
            self.breaches.append(f"it names a sequence twice in one plan: {ids}")
