"""Figures of one run: latencies, goodput, throughput, fairness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from plugserve.core.wire.trace_file import TraceRequest
from plugserve.simulate.fair_share import FairShares, share_of
from plugserve.simulate.simulation import Outcome, Served


@dataclass(frozen=True, slots=True)
class Targets:
    """The limits that a request must meet to count as goodput; None is no limit."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def are_met(self, served: Served) -> bool:
        if served.ttft_s is None or served.error:
            return False
        is_soon = self.ttft_s is None or served.ttft_s <= self.ttft_s
        return is_soon and (self.tpot_s is None or served.tpot_s is None or served.tpot_s <= self.tpot_s)


@dataclass(frozen=True, slots=True)
class UserFigures:
    """One user. share: 1 when the user's requests took no longer than on an n-th of the machine of the user's own, less
    when they took longer; None beyond the users with the most tokens (see FairShares)."""

    user: str
    num_requests: int
    num_tokens: int
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    share: float | None


@dataclass(frozen=True, slots=True)
class Figures:
    """One run as a row of the table. Times in seconds; goodput is a share of all requests; None where nothing of the
    kind was measured."""

    name: str
    num_requests: int
    num_failed: int
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    tpot_p50_s: float | None
    tpot_p99_s: float | None
    goodput: float
    good_requests_per_s: float
    output_tokens_per_s: float
    fairness: float
    num_preemptions: int | None
    num_cached_tokens: int | None
    users: tuple[UserFigures, ...]


def figures_of(name: str, served: Sequence[Served], shares: FairShares, targets: Targets) -> Figures:
    """Figures of requests that were served somewhere; preemptions and cached tokens are not known of those."""
    first_s = min((one.request.arrival_s for one in served), default=0.0)
    end_s = max((one.end_s for one in served if one.end_s is not None), default=first_s)
    duration_s = max(end_s - first_s, 1e-9)
    ttft = sorted(one.ttft_s for one in served if one.ttft_s is not None)
    tpot = sorted(one.tpot_s for one in served if one.tpot_s is not None)
    num_good = sum(targets.are_met(one) for one in served)
    users = _users(served, shares)
    return Figures(
        name=name,
        num_requests=len(served),
        num_failed=sum(bool(one.error) for one in served),
        ttft_p50_s=percentile(ttft, 0.5),
        ttft_p99_s=percentile(ttft, 0.99),
        tpot_p50_s=percentile(tpot, 0.5),
        tpot_p99_s=percentile(tpot, 0.99),
        goodput=num_good / len(served) if served else 0.0,
        good_requests_per_s=num_good / duration_s,
        output_tokens_per_s=sum(one.num_tokens for one in served) / duration_s,
        fairness=jain_index([user.share for user in users if user.share is not None]),
        num_preemptions=None,
        num_cached_tokens=None,
        users=users,
    )


def simulated_figures(name: str, outcome: Outcome, shares: FairShares, targets: Targets) -> Figures:
    """figures_of, with the counts that only a simulation has."""
    plain = figures_of(name, outcome.served, shares, targets)
    return replace(plain, num_preemptions=outcome.num_preemptions, num_cached_tokens=outcome.num_cached_tokens)


def measured(requests: Sequence[TraceRequest]) -> list[Served]:
    """The times that were measured when the trace was recorded; empty unless every answered request has them."""
    served = []
    for request in requests:
        if request.ttft_s is None and request.output_tokens and request.finish in ("stop", "length", ""):
            return []
        one = Served(request, request.output_tokens)
        if request.ttft_s is not None:
            one.first_s = request.arrival_s + request.ttft_s
        if request.total_s is not None:
            one.end_s = request.arrival_s + request.total_s
            one.first_s = one.end_s if one.first_s is None and not request.output_tokens else one.first_s
        one.error = request.finish if request.finish == "error" else ""
        served.append(one)
    return served


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The value that share of all are at most, of values in ascending order."""
    if not ordered:
        return None
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def jain_index(values: Sequence[float]) -> float:
    """Jain, Chiu and Hawe (1984): 1 when all values are equal, 1/n when all but one are 0."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def _users(served: Sequence[Served], shares: FairShares) -> tuple[UserFigures, ...]:
    by_user: dict[str, list[Served]] = {}
    for one in served:
        by_user.setdefault(one.request.user, []).append(one)
    return tuple(_user(user, by_user[user], shares) for user in sorted(by_user))


def _user(user: str, served: Sequence[Served], shares: FairShares) -> UserFigures:
    ttft = sorted(one.ttft_s for one in served if one.ttft_s is not None)
    pairs = [
        (own_s, one.end_s - one.request.arrival_s)
        for one in served
        if one.end_s is not None and (own_s := shares.own_s(one.request)) is not None
    ]
    return UserFigures(
        user=user,
        num_requests=len(served),
        num_tokens=sum(one.num_tokens + one.request.prompt_tokens for one in served if one.end_s is not None),
        ttft_p50_s=percentile(ttft, 0.5),
        ttft_p99_s=percentile(ttft, 0.99),
        share=share_of(pairs) if pairs else None,
    )


# ---------------------------------------------------------------- table

HEAD = ("scheduler", "TTFT p50", "p99", "TPOT p50", "p99", "goodput", "good/s", "tok/s", "fairness", "preempted")


def table(rows: Sequence[Figures]) -> str:
    """One line a run; times in ms."""
    cells = [HEAD, *(cells_of(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEAD))]
    lines = []
    for row in cells:
        name = row[0].ljust(widths[0])
        lines.append("  ".join([name, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]))
    return "\n".join(lines)


def cells_of(row: Figures) -> tuple[str, ...]:
    return (
        row.name,
        _ms(row.ttft_p50_s, 0),
        _ms(row.ttft_p99_s, 0),
        _ms(row.tpot_p50_s, 1),
        _ms(row.tpot_p99_s, 1),
        f"{row.goodput:.1%}",
        f"{row.good_requests_per_s:.2f}",
        f"{row.output_tokens_per_s:.1f}",
        f"{row.fairness:.3f}",
        "-" if row.num_preemptions is None else str(row.num_preemptions),
    )


def _ms(seconds: float | None, digits: int) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.{digits}f}"
