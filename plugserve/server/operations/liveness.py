"""Which processes of this server hang, read from the heartbeat board: for /health, /ready and /metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from plugserve.core.wire.heartbeats import HeartbeatBoard, Vitals


class Liveness(Protocol):
    """Read at each probe and each scrape; never waits."""

    def engines(self) -> Mapping[str, Vitals]:
        """Of each engine, by its model's name."""

    def workers(self) -> Mapping[str, Vitals]:
        """Of each server worker, by its index."""


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
    """Of a server without heartbeats: nothing ever hangs."""

    def engines(self) -> Mapping[str, Vitals]:
        return {}

    def workers(self) -> Mapping[str, Vitals]:
        return {}


def hung(vitals: Mapping[str, Vitals]) -> dict[str, str]:
    """What hangs, and how, in words for an answer."""
    return {name: str(one) for name, one in vitals.items() if one.is_unhealthy}
