"""A model runner that shares its model with the runners of other processes: each call is made on all of them."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plugserve.core.contracts.memory import MemoryLedger, MemoryUse
from plugserve.core.contracts.runner import ModelRunner, RunnerInfo, StepInput, StepResult
from plugserve.core.engine.ranks.rank_calls import CLOSE, COLLECT, forget_call, launch_call, masks_call, read_call
from plugserve.core.engine.ranks.rank_group import RankGroup


class RankFailureError(Exception):
    """Rank 0's part of a step failed, so the ranks no longer agree: the engine has to be started again."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class SharedAdapter:
    """An adapter that every rank has read: its number (from 1), and rank 0's share of it."""

    number: int
    own: Any

    @property
    def size_bytes(self) -> int:
        return int(getattr(self.own, "size_bytes", 0))


class SharedRunner:
    """runner is rank 0's, which is made for group's placement of rank 0. In a pipeline the results are those of the
    last stage, and estimate gives the ledger of the rank that takes most."""

    def __init__(
        self, runner: ModelRunner, group: RankGroup, estimate: Callable[[], MemoryLedger | None] | None = None
    ) -> None:
        self._runner = runner
        self._group = group
        self._estimate = estimate
        self._numbers = itertools.count(1)
        self.owns_attention = runner.owns_attention

    def load(self) -> RunnerInfo:
        self._group.start()
        return self._runner.load()

    def estimate_memory(self) -> MemoryLedger:
        """Rank 0's, or that of the largest stage."""
        ledger = None if self._estimate is None else self._estimate()
        return ledger if ledger is not None else self._runner.estimate_memory()  # type: ignore[attr-defined]

    def measure_memory(self) -> MemoryUse:
        use: MemoryUse = self._runner.measure_memory()  # type: ignore[attr-defined]
        return use

    def reader(self, read: Callable[[Path], Any]) -> Callable[[Path], SharedAdapter]:
        """read, on all ranks. It is called on a thread of its own."""

        def read_everywhere(folder: Path) -> SharedAdapter:
            own = read(folder)  # first: a fault is reported for the adapter, and no other rank meets it
            number = next(self._numbers)
            self._group.send(read_call(number, folder))
            adapter = SharedAdapter(number, own)
            weakref.finalize(adapter, self._group.send, forget_call(number)).atexit = False
            return adapter

        return read_everywhere

    def launch(self, step: StepInput) -> None:
        if step.adapters:
            loaded = step.adapters
            step.adapters = [(slot, one and one.number) for slot, one in loaded]
            call = launch_call(step)
            step.adapters = [(slot, one and one.own) for slot, one in loaded]
        else:
            call = launch_call(step)
        self._group.send(call)
        self._runner.launch(step)

    def provide_masks(self, step_id: int, masks: np.ndarray[Any, np.dtype[np.uint32]]) -> None:
        self._group.send(masks_call(step_id, masks))
        self._runner.provide_masks(step_id, masks)

    def collect(self) -> StepResult:
        """Raises RankFailureError where the step failed as a whole: maybe on this rank alone, and the others wait for
        it in vain."""
        self._group.send([COLLECT])
        result = self._runner.collect()
        if result.has_failed:
            raise RankFailureError(next(iter(result.failed.values())))
        if self._group.is_pipeline:
            drawn = self._group.receive_result()
            drawn.failed |= result.failed
            return drawn
        return result

    def close(self) -> None:
        self._group.send([CLOSE])
        self._runner.close()
        self._group.stop()
