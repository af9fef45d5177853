"""The ranks of one model: placed, started, called and stopped through an executor."""

from __future__ import annotations

import os
from collections.abc import Callable
from queue import SimpleQueue

from plugserve.core.contracts.executor import Executor, OnEnd, OnMessage, RankEnd, RankPlaces
from plugserve.core.contracts.parallel import RankPlacement
from plugserve.core.contracts.runner import StepResult
from plugserve.core.contracts.weights import ModelSource
from plugserve.core.engine.ranks.rank_calls import RESULT, decode_result
from plugserve.core.engine.ranks.rank_order import RankOrder, encode_job
from plugserve.core.engine.ranks.rank_watch import RankWatch
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.heartbeats import HangLimits, Pulse

MakeExecutor = Callable[[OnMessage, OnEnd], Executor]


def end_this_process(rank: int, end: RankEnd) -> None:
    """The default OnEnd: rank 0 may wait for the lost rank inside a collective operation, which nothing interrupts."""
    os._exit(2 if end.is_user_error else 1)


class RankGroup:
    """settings.num_ranks ranks, of which this process is rank 0. They share source. pulse is this process's."""

    def __init__(
        self,
        settings: Settings,
        source: ModelSource,
        make_executor: MakeExecutor,
        pulse: Pulse,
        on_end: OnEnd = end_this_process,
    ) -> None:
        self._settings = settings
        self._source = source
        self._results: SimpleQueue[bytes] = SimpleQueue()
        self._executor = make_executor(self._note_message, on_end)
        self._places: RankPlaces = self._executor.place()
        limits = HangLimits.of(settings.engine_hang_timeout, settings.engine_start_timeout)
        self._watch = RankWatch([place.node for place in self._places.places], limits, pulse, on_end)

    def placement(self, rank: int) -> RankPlacement:
        return RankPlacement(
            rank,
            self._settings.num_ranks,
            self._places.places[rank].local_rank,
            self._places.rendezvous,
            self._settings.pipeline_parallel_size,
        )

    def start(self) -> None:
        """Start the other ranks; they load while this one does."""
        own_node = self._places.places[0].node
        jobs = []
        for rank in range(1, self._settings.num_ranks):
            is_here = self._places.places[rank].node == own_node
            order = RankOrder.of(self._source, self.placement(rank))
            jobs.append(encode_job(self._settings, order, logs_to_file=is_here))
        self._executor.start(jobs)
        self._watch.start()

    @property
    def is_pipeline(self) -> bool:
        return self._settings.pipeline_parallel_size > 1

    def _note_message(self, rank: int, message: bytes) -> None:
        """A heartbeat; or, of the rank that draws in a pipeline, its next result."""
        if message.startswith(RESULT):
            self._results.put(message)
        else:
            self._watch.note(rank, message)

    def receive_result(self) -> StepResult:
        """In a pipeline: wait for the result of the oldest step whose collection was sent."""
        return decode_result(self._results.get())

    def send(self, call: list[bytes]) -> None:
        """From any thread; all ranks get the calls in one order."""
        self._executor.send(call)

    def stop(self) -> None:
        """After the last call."""
        self._watch.stop()
        self._executor.stop()
