"""When things happened to one sequence in its engine, sent with its last message.

Times are on time.monotonic's clock, which all processes of a host share.
"""

from __future__ import annotations

import msgspec


class Preemption(msgspec.Struct, array_like=True):
    """A sequence lost its blocks at at_s, and ran again from resumed_s on; None if it never did. is_swapped: they were
    kept in host memory, otherwise they were computed again."""

    at_s: float
    resumed_s: float | None = None
    is_swapped: bool = False


class SequenceTimes(msgspec.Struct, array_like=True):
    """The engine took the sequence in at arrived_s, first computed a part of it at scheduled_s, had its first token (or
    vector) at first_token_s, and was done with it at ended_s."""

    arrived_s: float
    scheduled_s: float | None
    first_token_s: float | None
    ended_s: float
    preemptions: list[Preemption] = []

    @property
    def queue_s(self) -> float:
        """Until something of it was computed, or until it ended unscheduled."""
        return (self.ended_s if self.scheduled_s is None else self.scheduled_s) - self.arrived_s

    @property
    def prefill_s(self) -> float:
        """From the first computation to the first token; 0 without one."""
        return 0.0 if None in (self.scheduled_s, self.first_token_s) else self.first_token_s - self.scheduled_s  # type: ignore[operator]

    @property
    def decode_s(self) -> float:
        """From the first token to the last; 0 without one."""
        return 0.0 if self.first_token_s is None else self.ended_s - self.first_token_s
