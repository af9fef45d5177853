"""The shared objects of one engine: limits, counts, clock, and the managers of blocks, rows, adapters and outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.contracts.runner import RunnerInfo
from plugserve.core.engine.adapter_pool import AdapterPool
from plugserve.core.engine.delivery import Delivery
from plugserve.core.engine.device_rows import DeviceRows
from plugserve.core.engine.kv.kv_manager import KVManager
from plugserve.core.engine.micro_batches import MicroBatches, OneGroup
from plugserve.core.engine.switched_off import NoAdapters, NoFlightRecorder


@dataclass(slots=True)
class EngineLimits:
    """Limits of one step: tokens, sequences (device rows), LoRA adapters; of waiting sequences, None for no limit; and
    of LoRA adapters in host memory, at least max_loras."""

    max_num_batched_tokens: int
    max_num_seqs: int
    max_num_waiting: int | None = None
    max_loras: int = 0
    max_cpu_loras: int = 64


@dataclass(frozen=True, slots=True)
class EngineState:
    """stats is the live object that all parts count into."""

    info: RunnerInfo
    limits: EngineLimits
    stats: EngineStats
    clock: Callable[[], float]
    kv: KVManager
    rows: DeviceRows
    adapters: AdapterPool | NoAdapters
    delivery: Delivery
    flight: NoFlightRecorder
    groups: MicroBatches | OneGroup
