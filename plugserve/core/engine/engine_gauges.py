"""The engine's current counts, for snapshots and for the flight recorder."""

from __future__ import annotations

from typing import Any

import numpy as np

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.engine.admission import Admission
from plugserve.core.engine.engine_state import EngineState
from plugserve.core.engine.live_sequences import LiveSequences


class EngineGauges:
    """Reads an engine's parts. report writes what they count into stats."""

    def __init__(self, state: EngineState, live: LiveSequences, admission: Admission) -> None:
        self.stats: EngineStats = state.stats
        self._kv = state.kv
        self._rows = state.rows
        self._adapters = state.adapters
        self._live = live
        self._admission = admission

    @property
    def num_running(self) -> int:
        return self._live.num_running

    @property
    def num_waiting(self) -> int:
        return self._admission.num_waiting

    @property
    def num_free_rows(self) -> int:
        return self._rows.num_free

    @property
    def num_free_blocks(self) -> int:
        return self._kv.num_free

    @property
    def num_cached_blocks(self) -> int:
        return self._kv.pool.index.num_evictable

    def block_states(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return self._kv.pool.states()

    def report(self) -> None:
        stats, adapters = self.stats, self._adapters
        self._kv.report(stats)
        stats.num_requests_running = self.num_running
        stats.num_requests_waiting = self.num_waiting
        stats.num_requests_waiting_for_adapter = len(adapters.waiting)
        stats.num_adapters = adapters.num_known
        stats.num_adapter_slots_in_use = adapters.num_slots_in_use
        stats.num_adapter_swaps = adapters.num_swaps
        stats.num_adapters_in_memory = adapters.num_in_memory
        stats.num_adapters_dropped = adapters.num_dropped
        stats.num_adapter_slots = adapters.num_slots
        stats.adapters_running, stats.adapters_waiting = adapters.names_in_use()
