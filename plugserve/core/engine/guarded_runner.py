"""Wraps a model runner: an error fails the entries of its step, and repeated errors end the engine. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.contracts.memory import MemoryUse
from plugserve.core.contracts.runner import ModelRunner, StepInput, StepResult
from plugserve.core.memory.process_use import process_use
from plugserve.core.plugin_system.failure_policy import STRATEGY_POLICIES
from plugserve.core.plugin_system.plugin_guard import PluginGuard

_CALL = "step"
_MOST_ERRORS = 3  # in a row


class GuardedRunner:
    """runner of plugin; the time of its steps is counted in stats, its failures by guard."""

    def __init__(self, runner: ModelRunner, plugin: str, stats: EngineStats, guard: PluginGuard) -> None:
        self._runner = runner
        self._plugin = plugin
        self._guard = guard
        self._key = f"{plugin} {_CALL}"
        self._seconds = stats.plugin_seconds
        self._seconds[self._key] = 0.0
        self._calls = stats.plugin_calls
        self._calls[self._key] = 0
        self._num_errors = 0
        self.measure_memory: Callable[[], MemoryUse] = getattr(runner, "measure_memory", process_use)
        """A runner that measures nothing gets this process's figures."""

    def launch(self, step: StepInput) -> None:
        self._runner.launch(step)

    def provide_masks(self, step_id: int, masks: np.ndarray[Any, np.dtype[np.uint32]]) -> None:
        self._runner.provide_masks(step_id, masks)

    def collect(self, step_id: int, num_entries: int) -> StepResult:
        """The oldest launched step's result. An exception fails all of the step's entries; after several in a row it is
        re-raised and ends the process, which the supervisor restarts."""
        try:
            result = self._runner.collect()
        except BaseException as error:
            self._guard.note_failure(self._plugin, _CALL, error, STRATEGY_POLICIES["model runner"])
            self._num_errors += 1
            if self._num_errors >= _MOST_ERRORS:
                raise
            reason = f"the model runner failed: {type(error).__name__}"
            entries = range(num_entries)
            failed = dict.fromkeys(entries, reason)
            return StepResult(step_id, tokens=[[] for _ in entries], failed=failed, has_failed=True)
        self._num_errors = 0
        self._seconds[self._key] += result.duration_s
        self._calls[self._key] += 1
        return result
