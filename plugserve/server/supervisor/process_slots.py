"""The supervisor's records of engines and server workers, one for each, kept across restarts of the process."""

from __future__ import annotations

import asyncio
import time
from enum import StrEnum

from plugserve.core.contracts.engine_facts import EngineInfo
from plugserve.core.model_files.model_source import ModelSource
from plugserve.core.settings.model_entries import ModelEntry
from plugserve.core.wire.messages import EngineDown, ModelCounts, ModelUse, StartFailed
from plugserve.server.supervisor.children import Backoff, Child
from plugserve.server.supervisor.model_finder import FoundModel


class ModelState(StrEnum):
    """The states of a model. RELEASING: it still serves the requests that have begun, and is unloaded after them."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    UP = "up"
    RELEASING = "unloading"
    FAILED = "failed"
    DEAD = "dead"


class Replica:
    """One engine of a model: its current process and its history. number counts from 0 in the model, index over all
    engines of the server."""

    def __init__(self, slot: EngineSlot, number: int, index: int) -> None:
        self.slot = slot
        self.number = number
        self.index = index
        self.generation = 0
        self.child: Child | None = None
        self.info: EngineInfo | None = None  # while it takes requests
        self.keeping: asyncio.Task[None] | None = None  # what starts it again
        self.is_up = False  # the current process has come up
        self.is_reachable = False  # it has loaded its model and listens
        self.failure: StartFailed | None = None
        self.backoff = Backoff()
        self.arrival: asyncio.Future[None] | None = None  # done when the engine of this load answers, or can't

    @property
    def shown(self) -> str:
        """For log lines: the model, and which of its engines, if it has several."""
        number = f" replica={self.number}" if len(self.slot.replicas) > 1 else ""
        return f"model={self.slot.name}{number}"

    @property
    def title(self) -> str:
        return f"engine {self.shown}"

    @property
    def short_name(self) -> str:
        return f"engine-{self.index}"

    @property
    def identity(self) -> bytes:
        return f"engine:{self.index}:{self.generation}".encode()


class EngineSlot:
    """One model: its engines, and its place in the pool."""

    def __init__(self, index: int, entry: ModelEntry, source: ModelSource | None = None, num_replicas: int = 1) -> None:
        self.index = index
        self.entry = entry
        self.source = source
        self.replicas = [Replica(self, number, index * num_replicas + number) for number in range(num_replicas)]
        self.is_wanted = False  # engines are started, and again when they die
        self.num_ups = 0
        self.num_restarts = 0
        self.state = ModelState.UNLOADED
        self.reason = ""
        self.stage = ""
        self.retry_at_s = 0.0
        self.num_failures = 0
        self.counts = ModelCounts()
        self.uses: dict[bytes, ModelUse] = {}
        self.is_added = False  # by a request that named it
        self.found: FoundModel | None = None  # its files and memory, once they were looked for
        self.measured_bytes = 0  # what it took when it was last loaded
        self.load_started_s = 0.0
        self.load_stages: list[tuple[str, float]] = []  # of the load in progress, and when each began
        self.loaded_s = 0.0
        self.changed = asyncio.Event()
        self.load: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def info(self) -> EngineInfo | None:
        """The facts of an engine that takes requests, None where none does."""
        return next((one.info for one in self.replicas if one.info is not None), None)

    @property
    def is_first_start(self) -> bool:
        """It loads with the server, which can't start without it."""
        return self.entry.is_preloaded and not self.num_ups

    @property
    def is_starting(self) -> bool:
        """It loads with the server, and has not come up."""
        return self.is_first_start and self.state is ModelState.LOADING

    @property
    def size_bytes(self) -> int:
        """What the model takes, or is about to take."""
        return self.counts.size_bytes

    @property
    def num_requests(self) -> int:
        """Requests in progress, as workers last reported."""
        return sum(use.num_requests for use in self.uses.values())

    @property
    def last_used_s(self) -> float:
        return max((self.loaded_s, *(use.last_used_s for use in self.uses.values())))

    @property
    def keep_alive_s(self) -> float | None:
        """The keep_alive of the last request that gave one."""
        latest = max(self.uses.values(), key=lambda use: use.last_used_s, default=None)
        return latest.keep_alive_s if latest is not None else None

    def down(self) -> EngineDown:
        """The message about a model without an engine that takes requests."""
        return EngineDown(
            model=self.name,
            state=self.state.value,
            reason=self.reason or self.state.value,
            stage=self.stage,
            is_found=self.source is not None,
            waits=not self.is_first_start,
            retry_at_s=self.retry_at_s,
            counts=self.counts,
        )

    def change(self, state: ModelState, *, reason: str = "", stage: str = "", retry_s: float = 0.0) -> None:
        """Enter a state. retry_s: how long a failed load is not tried again."""
        self.state, self.reason, self.stage = state, reason, stage
        if stage:
            self.load_stages.append((stage, time.monotonic()))
        self.changed.set()
        self.changed = asyncio.Event()
        self.retry_at_s = time.monotonic() + retry_s if retry_s else 0.0


class WorkerSlot:
    """One server worker: its current process and its history of restarts."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.child: Child | None = None
        self.has_listened = False
        self.is_ready = False
        self.failure: StartFailed | None = None
        self.backoff = Backoff()

    @property
    def title(self) -> str:
        return f"server worker index={self.index}"

    @property
    def short_name(self) -> str:
        return f"worker-{self.index}"

    @property
    def identity(self) -> bytes:
        assert self.child is not None
        return f"worker:{self.index}:{self.child.pid}".encode()
