"""Builds the engine of an encoder from settings, plugins and a model. Imports no torch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plugserve.core.contracts.encoding import EncoderRunner
from plugserve.core.contracts.runner import RunnerInfo
from plugserve.core.contracts.weights import ModelSource
from plugserve.core.engine.encoder_engine import EncoderEngine
from plugserve.core.engine.flight_recorder import make_flight_recorder
from plugserve.core.engine.memory_check import MemoryCheck, load_checked
from plugserve.core.engine.strategies import EngineStrategies
from plugserve.core.errors import ConfigError
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.heartbeats import Pulse

log = logging.getLogger(__name__)


class EncoderBuilder:
    """Makes one engine; the counterpart of EngineBuilder."""

    read_adapter: Callable[[Path], Any] | None = None
    cache_salt = ""

    def __init__(
        self,
        settings: Settings,
        host: PluginHost,
        source: ModelSource,
        pulse: Pulse | None = None,
        flight_path: Path | None = None,
    ) -> None:
        self._settings = settings
        self._flight_path = flight_path
        self._host = host
        self._source = source
        self._pulse = pulse
        note_progress = pulse.note_progress if pulse is not None else None
        self._strategies = EngineStrategies(settings, host, source, note_progress=note_progress)

    @property
    def slots(self) -> dict[str, str]:
        return self._strategies.slots

    def build(self) -> tuple[EncoderEngine, EncoderRunner, RunnerInfo]:
        """Load the model. Raises UserError for what the user can correct."""
        if self._settings.pipeline_parallel_size > 1:
            raise ConfigError(
                f"--pipeline-parallel-size {self._settings.pipeline_parallel_size}: {self._source.name} is an encoder, "
                "which runs on one device; use 1"
            )
        if self._settings.tensor_parallel_size > 1:
            log.warning(
                "--tensor-parallel-size %d has no effect: %s is an encoder, which runs on one device",
                self._settings.tensor_parallel_size,
                self._source.name,
            )
        runner = self._strategies.make_encoder_runner()
        info = load_checked(runner, MemoryCheck(self._settings, self._host, self._source))
        engine = EncoderEngine(
            runner,
            info,
            max_num_seqs=self._settings.max_num_seqs,
            max_num_waiting=self._settings.max_num_queued_requests,
            runner_plugin=self._strategies.owner("model_runners", "runner"),
            guard=self._host.guard,
            pulse=self._pulse,
            flight=make_flight_recorder(self._flight_path, self._settings, info, self._source),
        )
        return engine, runner, info
