"""Null objects for optional features that are off: the same methods, without effect."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from plugserve.core.contracts.runner import StepResult
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.flight.flight_entry import NO_ENTRY, FlightEntry
from plugserve.core.wire.request_origin import NO_ORIGIN, RequestOrigin

if TYPE_CHECKING:
    from plugserve.core.engine.adapter_pool import Adapter
    from plugserve.core.engine.batch import Batch
    from plugserve.core.engine.flight_recorder import FlightSource
    from plugserve.core.engine.sequence import RequestKey, Sequence


class NoSpeculation:
    """Replaces Speculation: no sequence gets drafts."""

    def acceptance(self, params: SamplingParams) -> None:
        return None

    def choose(
        self,
        scheduled: list[tuple[int, int]],
        needs: list[int],
        sequences: Mapping[int, Sequence],
        max_num_tokens: int,
        num_free_blocks: int,
    ) -> list[int]:
        return []

    def reclaim_blocks(self, sequences: Iterable[Sequence]) -> None: ...

    def settle(
        self, sequences: list[Sequence], num_tokens: list[int], num_drafts: list[int], result: StepResult
    ) -> list[int]:
        return num_tokens


class NoAdapters:
    """Replaces AdapterPool: no LoRA adapter is loaded."""

    num_slots = num_known = num_in_memory = num_slots_in_use = num_swaps = num_dropped = num_entered = 0

    def __init__(self) -> None:
        self.waiting: dict[RequestKey, Sequence] = {}
        self.changes: dict[int, Any] = {}
        self.wanted: list[Adapter] = []

    def names_in_use(self) -> tuple[list[str], list[str]]:
        return [], []

    def add(self, id: int, name: str, weights: Any, path: str = "") -> None:
        raise RuntimeError("this engine has no slots for LoRA adapters")

    def note_read(self, id: int, weights: Any) -> None: ...

    def give_up(self, id: int) -> list[Sequence]:
        return []

    def take_wanted(self) -> list[Adapter]:
        return []

    def retire(self, id: int) -> None: ...

    def find(self, id: int) -> Adapter | None:
        return None

    def enter(self, sequence: Sequence) -> bool:
        return True

    def abandon(self, key: RequestKey) -> None: ...

    def leave(self, sequence: Sequence) -> None: ...

    def admissible(self) -> list[Sequence]:
        return []

    def take_changes(self) -> list[tuple[int, Any]]:
        return []

    def check_integrity(self, entered: Iterable[Sequence]) -> None: ...


class NoFlightRecorder:
    """Replaces FlightRecorder: nothing is recorded. launching is the id of the step that is being planned."""

    launching = 0

    def connect(self, source: FlightSource) -> None:
        """Before anything is recorded."""

    def arrived(
        self,
        key: RequestKey,
        prompt: array[int],
        params: SamplingParams,
        at_s: float,
        *,
        origin: RequestOrigin = NO_ORIGIN,
        priority: int = 0,
        adapter: str = "",
        block_hashes: bytes = b"",
    ) -> FlightEntry:
        """A request has arrived. block_hashes are those that the server has made of its prompt, if any."""
        return NO_ENTRY

    def ready(self, entry: FlightEntry) -> None:
        """Its grammar is compiled."""

    def entered(self, entry: FlightEntry) -> None:
        """The scheduler may run it."""

    def scheduled(self, entry: FlightEntry, num_cached_tokens: int) -> None:
        """It is in a step for the first time."""

    def first_token(self, entry: FlightEntry) -> None: ...

    def preempted(self, entry: FlightEntry) -> None: ...

    def ended(self, entry: FlightEntry, finish: int) -> None:
        """With a FINISH_ code; a request that is refused has not entered before."""

    def step(self, batch: Batch, duration_s: float) -> None:
        """A step is collected, after duration_s in the runner."""

    def encoded(self, num_rows: int, num_tokens: int, duration_s: float) -> None:
        """A batch of an encoder is done; num_tokens with padding."""

    def tick(self) -> None:
        """Once a second write counts, tokens of running requests, and details if somebody watches; else do nothing."""

    def leave(self) -> None:
        """The engine stops in order."""
