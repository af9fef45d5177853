"""The torch model runner: loads a model, and hands its steps to the executor of its device."""

from __future__ import annotations

from typing import Any

import torch

from plugserve.backends.torch.runner.executor import Executor
from plugserve.backends.torch.runner.load_choices import RunnerSettings
from plugserve.backends.torch.runner.loaded_model import LoadedModel
from plugserve.backends.torch.runner.loader import Loader
from plugserve.backends.torch.runner.model_sources import ModelSources
from plugserve.core.contracts.runner import RunnerInfo, StepInput, StepResult
from plugserve.core.machine import usable_cores


class TorchRunner:
    """ModelRunner for every ModelDefinition, on any torch device."""

    owns_attention = False

    def __init__(self, sources: ModelSources, settings: RunnerSettings) -> None:
        self._sources = sources
        self._settings = settings
        self.loaded: LoadedModel | None = None
        self._executor: Executor

    def load(self) -> RunnerInfo:
        torch.set_num_threads(self._settings.num_threads or min(torch.get_num_threads(), usable_cores()))
        loader = Loader(self._sources, self._settings)
        self.loaded = loader.load()
        self._executor = loader.kind.start(self.loaded)
        return self.loaded.info

    def launch(self, step: StepInput) -> None:
        self._executor.launch(step)

    def provide_masks(self, step_id: int, masks: Any) -> None:
        self._executor.provide_masks(step_id, masks)

    def collect(self) -> StepResult:
        return self._executor.collect()

    def close(self) -> None:
        self._executor.close()
        if self.loaded is not None:
            self.loaded.kv.clear()
