"""The hung processes of this server, read from the heartbeat board, for /health, /ready and /metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from plugserve.core.wire.heartbeats import HeartbeatBoard, Vitals


class Liveness(Protocol):
    """Reads the heartbeat board at each probe and scrape; never waits."""

    def engines(self) -> Mapping[str, Vitals]:
        """Heartbeats of the engines, by model name; of several engines of a model the one that is worst off."""

    def each_engine(self, model: str) -> Sequence[Vitals]:
        """Heartbeats of a model's engines, in their order."""

    def workers(self) -> Mapping[str, Vitals]:
        """Heartbeats of the server workers, by index."""

    def progress(self, model: str) -> float:
        """The share of a model that its engine has loaded."""


class BoardLiveness:
    """The processes of a whole server. indices gives the indices of each model's engines, by the model's name."""

    def __init__(self, board: HeartbeatBoard, indices: Callable[[], Mapping[str, Sequence[int]]]) -> None:
        self._board = board
        self._indices = indices

    def engines(self) -> Mapping[str, Vitals]:
        return {
            name: max(map(self._board.engine, indices), key=lambda one: (one.is_unhealthy, one.age_s))
            for name, indices in self._indices().items()
        }

    def each_engine(self, model: str) -> Sequence[Vitals]:
        return [self._board.engine(index) for index in self._indices().get(model, ())]

    def workers(self) -> Mapping[str, Vitals]:
        return {str(index): self._board.worker(index) for index in range(self._board.num_workers)}

    def progress(self, model: str) -> float:
        return min((self._board.engine(index).progress for index in self._indices().get(model, ())), default=0.0)


class NullLiveness:
    """For a server without heartbeats: no process is ever reported as hung."""

    def engines(self) -> Mapping[str, Vitals]:
        return {}

    def each_engine(self, model: str) -> Sequence[Vitals]:
        return ()

    def workers(self) -> Mapping[str, Vitals]:
        return {}

    def progress(self, model: str) -> float:
        return 0.0


def hung(vitals: Mapping[str, Vitals]) -> dict[str, str]:
    """Descriptions of the hung processes, for a response."""
    return {name: str(one) for name, one in vitals.items() if one.is_unhealthy}
