"""The same share for every user (`--scheduler fair`): deficit round robin by tokens (Shreedhar and Varghese, 1995).

Users take turns. In each round a user may use quantum_tokens x weight tokens, prompt and generated tokens alike; tokens
beyond that are subtracted from the next rounds. An answer's length is not known in advance, so generated tokens are
charged as they are generated, and a user can have a deficit; a prompt is charged when it starts. A deficit lasts until
later rounds cover it, also while the user sends nothing; unused credit is lost. When memory runs out, the youngest
sequence of the user with the largest use gives way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from plugserve.core.contracts.factories import SchedulerContext, SchedulerFactory
from plugserve.core.contracts.scheduling import SequenceView
from plugserve.core.plugin_system.hookspecs import hookimpl
from plugserve.plugins.schedulers.continuous_batching import ContinuousBatching
from plugserve.plugins.schedulers.pace import Pace
from plugserve.plugins.schedulers.start_queue import Rank, SortedQueue

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class FairOptions(BaseModel):
    """Options of `--scheduler fair`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    quantum_tokens: int = Field(
        default=256,
        ge=1,
        description="Tokens that a user of weight 1 may use in a round before the next one's turn.",
    )
    weights: dict[str, Weight] = Field(
        default_factory=dict,
        description='Shares of users that don\'t weigh 1, as JSON by name: {"key-1a2b3c4d": 2, "ada": 0.5}.',
    )
    preemption_debt: int = Field(
        default=4096,
        ge=0,
        description="A request that can't start preempts a running one of a user who has used so many tokens more, by "
        "weight; 0 preempts none for that.",
    )
    per: Literal["key", "user"] = Field(
        default="key",
        description="Who counts as one user: an API key (requests without one by their user field), or each user "
        "field of a key for itself.",
    )


@dataclass(slots=True)
class _Account:
    """One user. used: tokens by weight, on the scale of the round. waiting is in order of arrival."""

    name: str
    weight: float
    used: float
    num_alive: int = 0
    waiting: SortedQueue = field(default_factory=SortedQueue)


@dataclass(slots=True)
class _Ticket:
    """One sequence's account, and how many of its tokens are paid and not computed yet. is_new: it has never started.
    is_refundable: the charge is refunded if it ends early."""

    account: _Account
    num_paid: int = 0
    is_new: bool = True
    is_refundable: bool = True


class FairQueue:
    """A StartQueue by deficit round robin. A user may start sequences while used < round_end, which each new round
    moves on by one quantum; so round_end - used is the deficit, by weight."""

    ranks_change = True

    def __init__(self, options: FairOptions) -> None:
        self._options = options
        self._round_end = float(options.quantum_tokens)
        self._accounts: dict[str, _Account] = {}  # in the order of turns
        self._tickets: dict[int, _Ticket] = {}
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    # ---- coming and going

    def add(self, view: SequenceView) -> None:
        ticket = self._tickets.get(view.id)
        if ticket is None:
            ticket = self._tickets[view.id] = _Ticket(self._account_of(view))
            ticket.account.num_alive += 1
        else:
            self._end_turn(ticket.account)  # it was preempted: those for whom it gave way go first
        ticket.account.waiting.add(view)
        self._num_waiting += 1

    def discard(self, view: SequenceView) -> bool:
        ticket = self._tickets.pop(view.id)
        account = ticket.account
        if ticket.is_refundable:
            account.used -= ticket.num_paid / account.weight
        is_waiting = account.waiting.discard(view)
        self._num_waiting -= is_waiting
        account.num_alive -= 1
        if not self._tickets:
            self._accounts.clear()  # the user's account is gone: nothing to refund
        elif not account.num_alive:
            self._forget_the_settled()
        return is_waiting

    def _account_of(self, view: SequenceView) -> _Account:
        """The user's account. A new or returning user has the credit of one round, less the deficit; tokens that others
        used while no sequence waited don't count."""
        name = payer(view.user, self._options.per)
        account = self._accounts.get(name)
        self._start_round(min((one.used for one in self._accounts.values() if one.num_alive), default=0.0))
        start = self._round_end - self._options.quantum_tokens
        if account is None:
            account = self._accounts[name] = _Account(name, self._options.weights.get(name, 1.0), start)
        elif not account.num_alive:
            account.used = max(account.used, start)
        return account

    def _forget_the_settled(self) -> None:
        """Drop the accounts of absent users without a deficit."""
        start = self._round_end - self._options.quantum_tokens
        settled = [name for name, one in self._accounts.items() if not one.num_alive and one.used <= start]
        for name in settled:
            del self._accounts[name]

    # ---- whose turn it is

    def first(self) -> SequenceView:
        while True:
            for account in self._accounts.values():
                if account.used < self._round_end and len(account.waiting):
                    return account.waiting.first()
            self._start_round(min(account.used for account in self._accounts.values() if len(account.waiting)))

    def _start_round(self, least_used: float) -> None:
        """Start rounds until a user who has used least_used tokens has credit."""
        quantum = self._options.quantum_tokens
        if least_used >= self._round_end:
            self._round_end += quantum * (math.floor((least_used - self._round_end) / quantum) + 1)

    def take(self, view: SequenceView, num_tokens: int) -> None:
        ticket = self._tickets[view.id]
        account = ticket.account
        account.waiting.take(view, num_tokens)
        self._num_waiting -= 1
        ticket.num_paid = num_tokens  # what is computed again after a preemption was paid before
        if ticket.is_new:
            ticket.is_new = False
            self._charge(account, num_tokens)
        else:
            ticket.is_refundable = False

    def _charge(self, account: _Account, num_tokens: int) -> None:
        """Move a user whose credit is used up to the end of the turn order."""
        had_credit = account.used < self._round_end
        account.used += num_tokens / account.weight
        if had_credit and account.used >= self._round_end:
            self._end_turn(account)

    def _end_turn(self, account: _Account) -> None:
        del self._accounts[account.name]
        self._accounts[account.name] = account

    def note_scheduled(self, scheduled: Sequence[tuple[int, int]]) -> None:
        tickets = self._tickets
        for id, num_tokens in scheduled:
            ticket = tickets[id]
            paid = min(num_tokens, ticket.num_paid)
            ticket.num_paid -= paid
            if num_tokens > paid:
                self._charge(ticket.account, num_tokens - paid)

    # ---- those that run

    def rank(self, view: SequenceView) -> Rank:
        return (self._tickets[view.id].account.used, view.id)

    def gives_way(self, running: SequenceView, waiting: SequenceView) -> bool:
        most = self._options.preemption_debt
        lead = self._tickets[running.id].account.used - self._tickets[waiting.id].account.used
        return 0 < most < lead

    def oldest_arrival_s(self) -> float:
        return min(one.waiting.first().arrival_s for one in self._accounts.values() if len(one.waiting))


def payer(user: str, per: str) -> str:
    """The account of SequenceView.user: for "key-1a2b3c4d/ada" the key's part or the whole name."""
    return user.partition("/")[0] if per == "key" and user.startswith("key-") else user


class FairScheduler(ContinuousBatching):
    """Scheduler by deficit round robin over users."""

    def __init__(self, options: FairOptions | None = None, pace: Pace | None = None) -> None:
        queue = FairQueue(options if options is not None else FairOptions())
        super().__init__(queue, pace if pace is not None else Pace())


def make_fair(context: SchedulerContext) -> FairScheduler:
    return FairScheduler(context.options, Pace.of(context))


@hookimpl
def plugserve_options() -> type[FairOptions]:
    return FairOptions


@hookimpl
def plugserve_schedulers() -> Mapping[str, SchedulerFactory]:
    return {"fair": make_fair}
