"""The torch model runner: loads a model, and hands its steps to the executor of its device."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any

import torch
from msgspec.structs import replace

from plugserve.backends.torch.parallel.process_group import leave
from plugserve.backends.torch.runner.executor import Executor
from plugserve.backends.torch.runner.load_choices import RunnerSettings
from plugserve.backends.torch.runner.loaded_model import LoadedModel
from plugserve.backends.torch.runner.loader import Loader
from plugserve.backends.torch.runner.model_sources import ModelSources
from plugserve.backends.torch.runner.out_of_memory import is_out_of_memory
from plugserve.core.contracts.memory import MemoryLedger, MemoryUse
from plugserve.core.contracts.parallel import ALONE, RankPlacement
from plugserve.core.contracts.runner import LoadStage, RunnerInfo, StepInput, StepResult
from plugserve.core.errors import MemoryShortError, one_line
from plugserve.core.memory.machine import usable_cores
from plugserve.core.memory.process_use import process_use


class TorchRunner:
    """ModelRunner for every ModelDefinition, on any torch device."""

    owns_attention = False
    shares_models = True

    def __init__(self, sources: ModelSources, settings: RunnerSettings, placement: RankPlacement = ALONE) -> None:
        self._sources = sources
        self._placement = placement
        self._settings = settings
        self.loaded: LoadedModel | None = None
        self._executor: Executor

    @cached_property
    def _loader(self) -> Loader:
        return Loader(self._sources, self._settings, self._placement)

    def estimate_memory(self) -> MemoryLedger:
        return self._loader.ledger

    def measure_memory(self) -> MemoryUse:
        return self._loader.kind.memory.measured(process_use())

    def load(self) -> RunnerInfo:
        num_threads = min(torch.get_num_threads(), max(1, usable_cores() // self._placement.num_ranks))
        torch.set_num_threads(self._settings.num_threads or num_threads)
        try:
            began_s = time.monotonic()
            self.loaded = self._loader.load()
            read_s = time.monotonic()
            self._executor = self._loader.kind.start(self.loaded)
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise MemoryShortError(one_line(error)) from error
            raise
        captures = self.loaded.captures
        warm_s = captures[0].started_s if captures else time.monotonic()
        stages = [LoadStage("read weights", began_s, read_s), LoadStage("warm up", read_s, warm_s), *captures]
        return replace(self.loaded.info, load_stages=stages)

    def launch(self, step: StepInput) -> None:
        self._executor.launch(step)

    def provide_masks(self, step_id: int, masks: Any) -> None:
        if self._placement.is_last_stage:  # the others don't draw
            self._executor.provide_masks(step_id, masks)

    def collect(self) -> StepResult:
        return self._executor.collect()

    def close(self) -> None:
        self._executor.close()
        if self.loaded is not None:
            self.loaded.kv.clear()
        leave()
