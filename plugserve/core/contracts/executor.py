"""The contract of executors, which place and start the processes that share a model, and carry calls to them.

Rank 0 is the engine's own process; an executor runs the others. Each gets a job, which it hands to plugserve.run_rank
together with its end of the channel (RankLink), and ends when that returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import msgspec


@dataclass(frozen=True, slots=True)
class RankPlace:
    """Where a rank runs. node is the machine's name for messages; local_rank is the number of its device among those
    that the rank's process sees."""

    node: str
    local_rank: int


@dataclass(frozen=True, slots=True)
class RankPlaces:
    """The places of all ranks, rank 0's first, and where they meet, in torch.distributed's form: a file that doesn't
    exist yet ("file:///tmp/x/rendezvous"), or an address of rank 0's machine ("tcp://10.0.0.1:29500")."""

    rendezvous: str
    places: tuple[RankPlace, ...]


class RankEnd(msgspec.Struct, frozen=True):
    """Why a rank has ended before it was asked to: one line. is_user_error: the user can correct it."""

    message: str
    is_user_error: bool = False


OnMessage = Callable[[int, bytes], None]
"""(rank, message): called for each message of a rank, in the order in which it sent them. It returns at once."""

OnEnd = Callable[[int, RankEnd], None]
"""(rank, why): called when a rank is lost, on any thread. The engine's process may end in it."""


class RankLink(Protocol):
    """A rank's end of the channel."""

    def receive(self) -> list[bytes]:
        """The next call of rank 0; waits for it."""

    def send(self, message: bytes) -> None:
        """A message to rank 0, from any thread. It doesn't wait."""


@runtime_checkable
class Executor(Protocol):
    """Runs the ranks above 0 of one engine. place, start and stop are called once each, in this order, on the engine's
    thread; send at any time in between, on several threads.

    It calls the context's on_end once a rank's process has ended, or can't be reached, while it isn't stopped: within 2
    seconds, since rank 0 may wait for that rank and nothing else interrupts it. The engine's process then ends, and the
    supervisor starts another one, whose executor places all ranks anew.
    """

    def place(self) -> RankPlaces:
        """Decide where every rank runs. May wait for machines, and says so in the log. Raises ConfigError for what the
        user can correct."""

    def start(self, jobs: Sequence[bytes]) -> None:
        """Start the ranks from 1 on, with their jobs; they load while the caller does."""

    def send(self, call: Sequence[bytes]) -> None:
        """Send a call to all ranks above 0. All get the calls in one order. Once all are connected, it
        doesn't wait for a rank."""

    def stop(self) -> None:
        """After the last call, which makes ranks end: wait for them, and end those that stay."""
