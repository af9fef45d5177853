"""Predicts a model's memory before it is loaded, and refuses one that can't fit, with the change that makes it fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from plugserve.core.contracts.encoding import EncoderRunner
from plugserve.core.contracts.memory import MemoryEstimator, MemoryLedger
from plugserve.core.contracts.parallel import RankPlacement
from plugserve.core.contracts.runner import ModelRunner, RunnerInfo
from plugserve.core.contracts.weights import ModelSource
from plugserve.core.engine.strategies import EngineStrategies
from plugserve.core.errors import ConfigError, MemoryShortError
from plugserve.core.memory.fixes import Fix, find_fixes
from plugserve.core.memory.ledger_text import host_problem, problem, summary, table
from plugserve.core.model_files.encoder_files import is_encoder
from plugserve.core.model_files.model_source import read_config
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings import Settings

log = logging.getLogger(__name__)

_MOST_NAMED = 3


class MemoryCheck:
    """The check of one model with its settings."""

    def __init__(self, settings: Settings, host: PluginHost, source: ModelSource) -> None:
        self._settings = settings
        self._host = host
        self._source = source

    @property
    def name(self) -> str:
        return self._source.name

    def ledger(self, changes: Mapping[str, Any] | None = None) -> MemoryLedger | None:
        """The ledger, with some settings changed; None for a runner that predicts nothing. Of ranks that share a model
        it is that of one: of a pipeline's, of the stage that takes most."""
        settings = self._settings.model_copy(update=dict(changes or {}))
        strategies = EngineStrategies(settings, self._host, self._source, is_quiet=True)
        is_decoder = not is_encoder(read_config(self._source))
        if not is_decoder:
            return predicted(strategies.make_encoder_runner())
        num_stages, size = settings.pipeline_parallel_size, settings.tensor_parallel_size
        places = [RankPlacement(stage * size, num_stages * size, num_stages=num_stages) for stage in range(num_stages)]
        ledgers = [predicted(strategies.make_runner(place)) for place in places]
        return max((one for one in ledgers if one is not None), key=_most_bytes, default=None)

    def fixes(self) -> list[Fix]:
        """What makes it fit, the smallest change first; [] where it fits already, or nothing helps."""
        ledger = self.ledger()
        return [] if ledger is None or ledger.fits else find_fixes(self._settings, self._estimate)

    def _estimate(self, changes: Mapping[str, Any]) -> MemoryLedger:
        ledger = self.ledger(changes)
        assert ledger is not None, "the runner predicted before"
        return ledger


def _most_bytes(ledger: MemoryLedger) -> int:
    return max(place.needed_bytes for place in ledger.places)


def check_together(check: MemoryCheck, num_processes: int) -> None:
    """Before the first engine of a model on a CPU loads: raises ConfigError where all processes that will hold the
    model don't fit into host memory, though one does."""
    ledger = check.ledger()
    if ledger is not None and ledger.device == "cpu" and (fault := host_problem(num_processes, ledger)):
        raise ConfigError(
            f"{check.name} does not fit in each of {num_processes} processes: {fault} or --data-parallel-size"
        )


def predicted(runner: ModelRunner | EncoderRunner) -> MemoryLedger | None:
    """The ledger of a runner that is not loaded yet; None for one that predicts nothing."""
    return runner.estimate_memory() if isinstance(runner, MemoryEstimator) else None


def load_checked(runner: ModelRunner | EncoderRunner, check: MemoryCheck) -> RunnerInfo:
    """Load a runner unless its model can't fit. The ledger is logged with every refusal (ConfigError), and when memory
    runs out nevertheless."""
    ledger = predicted(runner)
    if ledger is None:
        return runner.load()
    if not ledger.fits:
        log_ledger(check.name, ledger)
        raise ConfigError(f"{check.name} does not fit: {problem(ledger)}; {advice(check.fixes())}")
    try:
        return replace(runner.load(), memory=ledger)
    except MemoryShortError as error:
        log_ledger(check.name, ledger)
        raise ConfigError(
            f"memory ran out while {check.name} was loaded: {error}; it was to take {summary(ledger)}; another process "
            f"may have taken the rest: {_less_kv(ledger)}, or free memory"
        ) from error


def _less_kv(ledger: MemoryLedger) -> str:
    return "lower --kv-cache-memory" if ledger.device == "cpu" else "lower --gpu-memory-utilization"


def log_ledger(name: str, ledger: MemoryLedger) -> None:
    """The table, one log line each."""
    for line in table(ledger).splitlines():
        log.error("memory of %s: %s", name, line)


def advice(fixes: list[Fix]) -> str:
    """The smallest change and others that work, for the end of a message."""
    if not fixes:
        return "no change of settings makes it fit: take a smaller model, or a machine with more memory"
    first, *others = (str(fix) for fix in fixes[:_MOST_NAMED])
    return f"the smallest change that makes it fit is {first}" + (f" (or {', or '.join(others)})" if others else "")
