"""Plans, before anything is loaded, what memory the models of a server may take."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass

from plugserve.core.errors import ConfigError
from plugserve.core.settings.model_entries import settings_of
from plugserve.core.settings.settings import Settings
from plugserve.server.supervisor.model_size import free_memory_bytes, predict_bytes, shown_bytes, uses_gpu
from plugserve.server.supervisor.model_table import ModelTable
from plugserve.server.supervisor.process_slots import EngineSlot
from plugserve.server.supervisor.resource_shares import ResourceShares
from plugserve.server.supervisor.startup_lines import announce_table

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """slots know what the models that load at the start are expected to take."""

    slots: list[EngineSlot]
    budget_bytes: int


def plan_memory(settings: Settings, table: ModelTable) -> MemoryPlan:
    """Raises ConfigError for a budget that can't hold the models that load at the start. A server of a single model has
    no budget unless one is given."""
    slots = table.slots()
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
    for slot in slots:
        if slot.entry.is_preloaded and slot.source is not None:
            own = shares.divided(settings_of(settings, slot.entry), slot.entry)
            slot.expected_bytes = predict_bytes(own, slot.source)
    _check(slots, budget_bytes, is_given=given is not None)
    return MemoryPlan(slots, budget_bytes)


def _check(slots: list[EngineSlot], budget_bytes: int, *, is_given: bool) -> None:
    """The models that load at the start against the budget."""
    needed = sum(slot.expected_bytes for slot in slots)
    if needed <= budget_bytes:
        return
    sizes = ", ".join(f"{slot.name} {shown_bytes(slot.expected_bytes)}" for slot in slots if slot.expected_bytes)
    line = f"the models that load at the start take about {shown_bytes(needed)} ({sizes})"
    if is_given:
        raise ConfigError(
            f"--model-memory-budget {shown_bytes(budget_bytes)} is too small: {line}; raise it, lower "
            "--kv-cache-memory, or put models into the table `models:`, which loads them on demand"
        )
    log.warning("%s, more than the %s that are free now", line, shown_bytes(budget_bytes))
