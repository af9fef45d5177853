"""How a request's upstream is chosen among those that are up and serve its model."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Final, Protocol

from plugserve.server.balance.prefix_table import PrefixTable
from plugserve.server.router.upstream import Upstream

CHOICES: Final = {
    "hit": "it holds the longest known beginning, as of the conversation's last turn",
    "branch": "it holds the beginning that a new conversation shares with others",
    "spread": "many conversations share the beginning, so another upstream computes it too",
    "overflow": "those that hold the beginning have too many requests",
    "miss": "the beginning is not known",
}


class Choice:
    """An upstream, and why: the policy's name, or with "prefix" one of CHOICES.

    num_matched: blocks of the request's beginning that the upstream is known to hold.
    """

    __slots__ = ("num_matched", "reason", "upstream")

    def __init__(self, upstream: Upstream, reason: str, num_matched: int = 0) -> None:
        self.upstream = upstream
        self.reason = reason
        self.num_matched = num_matched


class Policy(Protocol):
    """uses_prefixes: choose needs the blocks of the request's beginning."""

    uses_prefixes: bool

    def choose(self, candidates: Sequence[Upstream], blocks: Sequence[int]) -> Choice:
        """One of candidates, which are never empty."""
        ...


class RoundRobin:
    """One after the other: the one that was chosen longest ago."""

    uses_prefixes = False

    def __init__(self) -> None:
        self._turns: dict[str, int] = {}
        self._numbers = itertools.count(1)

    def choose(self, candidates: Sequence[Upstream], blocks: Sequence[int]) -> Choice:
        chosen = min(candidates, key=lambda one: self._turns.get(one.name, 0))
        self._turns[chosen.name] = next(self._numbers)
        return Choice(chosen, "round-robin")


class LeastLoaded:
    """The one with the fewest requests of this router in flight. The counts are exact, so all are compared, not two."""

    uses_prefixes = False

    def choose(self, candidates: Sequence[Upstream], blocks: Sequence[int]) -> Choice:
        return Choice(min(candidates, key=lambda one: (one.num_in_flight, random.random())), "least-loaded")


class PrefixAffinity:
    """The upstream that has computed the longest beginning of the request, while it has at most slack requests more in
    flight than the least loaded one.

    New conversations that share only a common beginning go to one that has it; where many do, more upstreams compute
    it. Requests without a known beginning go to the least loaded upstream, among equals to the one with fewest blocks.
    """

    uses_prefixes = True

    def __init__(self, slack: int, table: PrefixTable | None = None) -> None:
        self._slack = slack
        self._table = table if table is not None else PrefixTable()

    def choose(self, candidates: Sequence[Upstream], blocks: Sequence[int]) -> Choice:
        by_owner = {one.owner: one for one in candidates}
        match = self._table.match(blocks, by_owner.keys())
        choice = self._choose(
            candidates, [by_owner[owner] for owner in match.holders], match.is_branch, match.is_crowded
        )
        if choice.reason in ("hit", "branch"):
            choice.num_matched = match.num_blocks
        self._table.note(blocks, choice.upstream.owner)
        return choice

    def _choose(
        self, candidates: Sequence[Upstream], holders: Sequence[Upstream], is_branch: bool, is_crowded: bool
    ) -> Choice:
        if not holders:
            return Choice(self._lightest(candidates), "miss")
        holder = self._lightest(holders)
        least = min(one.num_in_flight for one in candidates)
        if is_crowded and len(holders) < len(candidates):
            other = self._lightest([one for one in candidates if one not in holders])
            if other.num_in_flight <= holder.num_in_flight + self._slack:
                return Choice(other, "spread")
        if holder.num_in_flight > least + self._slack:
            return Choice(self._lightest(candidates), "overflow")
        return Choice(holder, "branch" if is_branch else "hit")

    def _lightest(self, upstreams: Sequence[Upstream]) -> Upstream:
        return min(upstreams, key=lambda one: (one.num_in_flight, self._table.num_owned(one.owner), random.random()))


POLICIES: Final = ("prefix", "least-loaded", "round-robin")


def make_policy(name: str, slack: int) -> Policy:
    if name == "prefix":
        return PrefixAffinity(slack)
    return LeastLoaded() if name == "least-loaded" else RoundRobin()
