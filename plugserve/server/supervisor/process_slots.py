"""The supervisor's records of engines and server workers, one for each, kept across restarts of the process."""

from __future__ import annotations

from plugserve.core.contracts.engine_facts import EngineInfo
from plugserve.core.model_files.model_source import ModelSource
from plugserve.core.wire.messages import StartFailed
from plugserve.server.supervisor.children import Backoff, Child


class EngineSlot:
    """One model's engine: its current process and its history of restarts."""

    def __init__(self, index: int, source: ModelSource) -> None:
        self.index = index
        self.source = source
        self.generation = 0
        self.child: Child | None = None
        self.info: EngineInfo | None = None
        self.is_reachable = False  # it has loaded its model and listens
        self.num_ups = 0
        self.failure: StartFailed | None = None
        self.backoff = Backoff()

    @property
    def title(self) -> str:
        return f"engine model={self.source.name}"

    @property
    def short_name(self) -> str:
        return f"engine-{self.index}"

    @property
    def identity(self) -> bytes:
        return f"engine:{self.index}:{self.generation}".encode()


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
