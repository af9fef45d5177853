"""A model on its device: the loader's result, which executors run."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from plugserve.backends.torch.runner.draft_runner import TorchDraftRunner
from plugserve.backends.torch.runner.step_runner import StepRunner
from plugserve.core.contracts.attention import AttentionBackend
from plugserve.core.contracts.model import ModelDefinition
from plugserve.core.contracts.runner import LoadStage, RunnerInfo


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on its device, ready to run steps. The executor adds the captures of graphs that it made."""

    info: RunnerInfo
    model: ModelDefinition
    attention: AttentionBackend
    kv: list[torch.Tensor]
    steps: StepRunner
    draft: TorchDraftRunner | None
    device: torch.device
    max_num_seqs: int
    enforce_eager: bool
    captures: list[LoadStage] = field(default_factory=list)
