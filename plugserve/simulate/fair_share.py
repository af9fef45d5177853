"""The fair share of each user: the time of the user's requests alone on a machine with an n-th of the speed. The
reference of finish-time fairness (Themis: Mahajan et al. 2020).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from plugserve.core.contracts.scheduling import Scheduler, StepTime
from plugserve.core.wire.trace_file import TraceRequest
from plugserve.simulate.simulation import Machine, Simulation

MOST_USERS: Final = 50
"""Shares are known for the users with the most tokens; each costs a simulation."""


class FairShares:
    """own_s gives how long a request takes from arrival to end on its user's own machine; None for users beyond the
    MOST_USERS largest. make_scheduler makes a scheduler in order of arrival."""

    def __init__(
        self, requests: Sequence[TraceRequest], machine: Machine, make_scheduler: Callable[[], Scheduler]
    ) -> None:
        tokens: Counter[str] = Counter()
        for request in requests:
            tokens[request.user] += request.prompt_tokens + request.output_tokens
        users = [user for user, _ in tokens.most_common(MOST_USERS)]
        slower = replace(machine, step_time=_slowed(machine.step_time, len(users)), max_num_waiting=None)
        self._own_s: dict[int, float] = {}  # by identity of the request
        for user in users:
            theirs = [request for request in requests if request.user == user]
            for one in Simulation(slower, make_scheduler(), "fair share").run(theirs).served:
                if one.end_s is not None:
                    self._own_s[id(one.request)] = one.end_s - one.request.arrival_s
        self._requests = list(requests)  # keeps the identities alive

    def own_s(self, request: TraceRequest) -> float | None:
        """The same object as was given."""
        return self._own_s.get(id(request))


def _slowed(step_time: StepTime, factor: int) -> StepTime:
    return StepTime(
        factor * step_time.base_s,
        factor * step_time.per_token_s,
        factor * step_time.per_row_s,
        factor * step_time.per_pair_s,
    )


def share_of(pairs: Sequence[tuple[float, float]]) -> float:
    """(own time, time that it took) of a user's requests: 1 when they took no longer altogether, less when they did."""
    own_s, took_s = (sum(times) for times in zip(*pairs, strict=True)) if pairs else (0.0, 0.0)
    return min(1.0, own_s / took_s) if took_s else 1.0
