"""The hung processes of this server, read from the heartbeat board, for /health, /ready and /metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from plugserve.core.wire.heartbeats import HeartbeatBoard, Vitals


class Liveness(Protocol):
    """Reads the heartbeat board at each probe and scrape; never waits."""

    def engines(self) -> Mapping[str, Vitals]:
        """Heartbeats of the engines, by model name."""

    def workers(self) -> Mapping[str, Vitals]:
        """Heartbeats of the server workers, by index."""


class BoardLiveness:
    """The processes of a whole server; models are named in the order of their engines."""

    def __init__(self, board: HeartbeatBoard, models: Sequence[str]) -> None:
        self._board = board
        self._models = tuple(models)

    def engines(self) -> Mapping[str, Vitals]:
        return {model: self._board.engine(index) for index, model in enumerate(self._models)}

    def workers(self) -> Mapping[str, Vitals]:
        return {str(index): self._board.worker(index) for index in range(self._board.num_workers)}


class NullLiveness:
    """For a server without heartbeats: no process is ever reported as hung."""

    def engines(self) -> Mapping[str, Vitals]:
        return {}

    def workers(self) -> Mapping[str, Vitals]:
        return {}


def hung(vitals: Mapping[str, Vitals]) -> dict[str, str]:
    """Descriptions of the hung processes, for a response."""
    return {name: str(one) for name, one in vitals.items() if one.is_unhealthy}
