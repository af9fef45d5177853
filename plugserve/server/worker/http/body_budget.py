"""The bytes of request bodies that one worker holds at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from plugserve.server.worker.http.request_head import HttpError

_LEAST_AGE_S: Final = 5.0  # younger uploads are not compared by rate


class BodyBudget:
    """Grants bytes to bodies up to a limit. When it is used up, the slowest upload is ended, possibly the one that
    asks, so that stalled uploads can't block others."""

    def __init__(self, max_bytes: int, now: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._now = now
        self._num_bytes = 0
        self._arriving: set[BodyShare] = set()

    @property
    def num_bytes(self) -> int:
        """Bytes that bodies hold now."""
        return self._num_bytes

    def open_share(self, drop: Callable[[], None]) -> BodyShare:
        """The share of a body that starts to arrive. drop ends its connection."""
        share = BodyShare(self, drop, self._now())
        self._arriving.add(share)
        return share

    def take(self, share: BodyShare, num_bytes: int) -> None:
        """Raises HttpError (503) when the limit is reached and no slower body can be dropped."""
        while self._num_bytes + num_bytes > self._max_bytes:
            slowest = min(
                (one for one in self._arriving if self._now() - one.began_s > _LEAST_AGE_S),
                key=self._rate,
                default=share,
            )
            if slowest is share or not slowest.num_bytes or self._rate(slowest) >= self._rate(share):
                raise HttpError("The server is receiving too many large requests; try again in a moment.", status=503)
            slowest.drop()
            slowest.close()
        self._num_bytes += num_bytes
        share.num_bytes += num_bytes

    def note_arrived(self, share: BodyShare) -> None:
        """The body is complete and can no longer be ended as too slow."""
        self._arriving.discard(share)

    def give_back(self, share: BodyShare) -> None:
        self._arriving.discard(share)
        self._num_bytes -= share.num_bytes
        share.num_bytes = 0

    def _rate(self, share: BodyShare) -> float:
        return share.num_bytes / max(self._now() - share.began_s, 0.001)


class BodyShare:
    """The bytes that one body holds of the budget, from its first byte to the end of its request."""

    def __init__(self, budget: BodyBudget, drop: Callable[[], None], began_s: float) -> None:
        self._budget = budget
        self.drop = drop
        self.began_s = began_s
        self.num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Raises HttpError (503)."""
        self._budget.take(self, num_bytes)

    def note_arrived(self) -> None:
        self._budget.note_arrived(self)

    def close(self) -> None:
        """Return all bytes to the budget. Safe to call twice."""
        self._budget.give_back(self)
