"""What a process and its loop call of an engine: Engine for models that generate, EncoderEngine for encoders."""

from __future__ import annotations

from array import array
from typing import Protocol

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.engine.adapter_pool import AdapterPool
from plugserve.core.engine.sequence import RequestKey
from plugserve.core.engine.step_time import StepTimeFit
from plugserve.core.engine.switched_off import NoAdapters, NoFlightRecorder
from plugserve.core.wire.messages import StepOutputs
from plugserve.core.wire.request_origin import NO_ORIGIN, RequestOrigin


class AdmitCall(Protocol):
    """Takes a request in (see Admission.admit)."""

    def __call__(
        self,
        key: RequestKey,
        prompt: array[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        user: str = "",
        cache_salt: str = "",
        block_hashes: bytes = b"",
        adapter_id: int = 0,
        origin: RequestOrigin = NO_ORIGIN,
    ) -> None: ...


class AbortCall(Protocol):
    """Aborts a request. Unknown keys are ignored."""

    def __call__(self, key: RequestKey) -> None: ...


class AbortWorkerCall(Protocol):
    """Forgets every request of one server worker; returns how many."""

    def __call__(self, identity: bytes) -> int: ...


class ServingEngine(Protocol):
    """Used from one thread. See Engine for the meaning of each."""

    step_time: StepTimeFit
    flight: NoFlightRecorder

    @property
    def adapters(self) -> AdapterPool | NoAdapters: ...

    @property
    def admit(self) -> AdmitCall: ...

    @property
    def abort(self) -> AbortCall: ...

    @property
    def abort_worker(self) -> AbortWorkerCall: ...

    @property
    def has_work(self) -> bool: ...

    @property
    def is_compiling(self) -> bool: ...

    @property
    def is_stalled(self) -> bool: ...

    def admit_compiled(self) -> None: ...

    def refuse_adapter(self, adapter_id: int, reason: str) -> None: ...

    def step(self) -> None: ...

    def drain(self) -> None: ...

    def take_outputs(self) -> list[tuple[bytes, StepOutputs]]: ...

    def snapshot(self) -> EngineStats: ...

    def check_integrity(self) -> None: ...
