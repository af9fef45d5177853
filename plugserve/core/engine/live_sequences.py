"""Sequences from the moment when they may be scheduled until their blocks and rows are free again.

A sequence that was preempted or has ended keeps blocks and row while a step in flight computes it: it is leaving.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from plugserve.core.engine.engine_state import EngineState
from plugserve.core.engine.kv.block_pool import IntegrityError
from plugserve.core.engine.sequence import RequestKey, Sequence
from plugserve.core.engine.step_plan import Planner
from plugserve.core.wire.messages import FINISH_ABORT, FINISH_ERROR
from plugserve.core.wire.sequence_times import Preemption

_MOST_PREEMPTIONS: Final = 15  # whose times are kept, the last of them


class LiveSequences:
    """by_id and by_key hold the live ones, leaving those with a step still in flight; num_running have a row and may
    be computed."""

    def __init__(self, state: EngineState, planner: Planner) -> None:
        self.by_id: dict[int, Sequence] = {}
        self.by_key: dict[RequestKey, Sequence] = {}
        self.leaving: dict[int, Sequence] = {}
        self.num_running = 0
        self._planner = planner
        self._kv = state.kv
        self._rows = state.rows
        self._adapters = state.adapters
        self._delivery = state.delivery
        self._stats = state.stats
        self._clock = state.clock
        self._flight = state.flight
        self._groups = state.groups

    @property
    def num_waiting(self) -> int:
        return len(self.by_id) - self.num_running

    def add(self, sequence: Sequence) -> None:
        """Add it to the scheduler."""
        self.by_id[sequence.id] = sequence
        self.by_key[sequence.key] = sequence
        self._flight.entered(sequence.flight)
        error = self._planner.add(sequence)
        if error:
            self.fail(sequence, error)

    def start(self, sequence: Sequence) -> None:
        """Give a waiting sequence a row; its prefix is claimed."""
        self._kv.start(sequence)
        if sequence.first_scheduled_s is None:
            sequence.first_scheduled_s = self._clock()
            self._flight.scheduled(sequence.flight, sequence.num_cached_tokens)
        elif sequence.preemptions and sequence.preemptions[-1].resumed_s is None:
            sequence.preemptions[-1].resumed_s = self._clock()
        sequence.trim_prompt_logprobs()
        self._rows.allocate(sequence)
        sequence.is_running = True
        self.num_running += 1
        self._groups.join(sequence)
        sequence.settle()

    def restart(self, sequence: Sequence) -> None:
        """Compute a running sequence without a step in flight anew, from the next step on."""
        self._stop_running(sequence)
        self._release(sequence)
        sequence.reset()
        self._kv.claim(sequence)
        self.start(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Preempt it: it waits again once its step in flight is collected."""
        self._stats.num_preemptions += 1
        sequence.num_preemptions += 1
        self._flight.preempted(sequence.flight)
        sequence.preemptions = [*sequence.preemptions[-_MOST_PREEMPTIONS:], Preemption(self._clock())]
        self._stop_running(sequence)
        if sequence.num_in_flight:
            sequence.is_releasing = True
            self.leaving[sequence.id] = sequence
        else:
            self._swap_out(sequence)

    def _swap_out(self, sequence: Sequence) -> None:
        """A preempted sequence gives its blocks and row back, and waits."""
        is_swapped = sequence.preemptions[-1].is_swapped = self._kv.swap_out(sequence)
        self._release(sequence)
        sequence.reset(is_swapped=is_swapped)

    def finish(self, sequence: Sequence, finish: int = FINISH_ABORT) -> None:
        """End a live sequence with a FINISH_ code; its blocks and row are freed when nothing of it is in flight."""
        sequence.is_finished = True
        self._flight.ended(sequence.flight, finish)
        self._stop_running(sequence)
        del self.by_id[sequence.id]
        del self.by_key[sequence.key]
        if sequence.adapter is not None:
            self._adapters.leave(sequence)
        self._planner.remove(sequence.id)
        if sequence.num_in_flight:
            self.leaving[sequence.id] = sequence
        else:
            self.leaving.pop(sequence.id, None)
            self._kv.drop_swapped(sequence)
            self._release(sequence)

    def fail(self, sequence: Sequence, message: str, finish: int = FINISH_ERROR) -> None:
        """End a live sequence with an error."""
        self._delivery.add_failure(sequence, message, finish)
        self.finish(sequence, finish)

    def release_collected(self, sequences: Iterable[Sequence]) -> None:
        """A step of sequences is collected: those of them that leave, and are not in the next step, do so."""
        for sequence in sequences:
            if sequence.num_in_flight == 0 and sequence.id in self.leaving:
                del self.leaving[sequence.id]
                if sequence.is_finished:
                    self._release(sequence)
                else:
                    self._swap_out(sequence)

    def _stop_running(self, sequence: Sequence) -> None:
        if sequence.is_running:
            sequence.is_running = False
            self.num_running -= 1
            self._groups.leave(sequence)
            self._kv.stop(sequence)

    def _release(self, sequence: Sequence) -> None:
        self._kv.release(sequence)
        self._rows.free(sequence)

    def check_integrity(self) -> None:
        """Raise IntegrityError unless blocks, rows and adapters' slots are held by these sequences or free."""
        holders = self.by_id | self.leaving
        self._kv.check_integrity(holders.values())
        num_held = sum(sequence.row >= 0 for sequence in holders.values())
        if num_held + self._rows.num_free != self._rows.num_rows:
            raise IntegrityError(f"{num_held} rows held and {self._rows.num_free} free, of {self._rows.num_rows}")
        self._adapters.check_integrity(self.by_id.values())
