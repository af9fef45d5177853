"""Plans, before anything is loaded, what memory the models of a server may take."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from plugserve.core.errors import ConfigError
from plugserve.core.settings.settings import Settings
from plugserve.server.supervisor.model_size import free_memory_bytes, uses_gpu
from plugserve.server.supervisor.model_table import ModelTable
from plugserve.server.supervisor.process_slots import EngineSlot
from plugserve.server.supervisor.resource_shares import ResourceShares
from plugserve.server.supervisor.startup_lines import announce_table


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """slots hold one entry a model, in the order of the table."""

    slots: list[EngineSlot]
    budget_bytes: int


def plan_memory(settings: Settings, table: ModelTable) -> MemoryPlan:
    """A server of a single model has no budget unless one is given. Raises ConfigError where none can be found."""
    slots = table.slots(settings.data_parallel_size)
    shares = ResourceShares(settings, table.entries)
    given = settings.model_memory_budget
    if given is None and not shares.has_several:
        return MemoryPlan(slots, sys.maxsize)
    budget_bytes = free_memory_bytes(settings) if given is None else given
    if not budget_bytes:
        device = "GPU" if uses_gpu(settings) else "machine"
        raise ConfigError(f"the free memory of the {device} can't be told; give --model-memory-budget")
    announce_table(table.entries, budget_bytes, is_given=given is not None)
    shares.announce(settings)
    return MemoryPlan(slots, budget_bytes)
