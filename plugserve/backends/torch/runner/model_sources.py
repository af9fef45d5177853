"""The sources of a model for the torch runner: config, weights, and the factories of plugins' parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from plugserve.core.contracts.attention import AttentionBackend, AttentionSpec
from plugserve.core.contracts.factories import ProposerMaker
from plugserve.core.contracts.lora import LoraManager, LoraSpec
from plugserve.core.model_files.architectures import Architectures
from plugserve.core.model_files.stored_weights import NO_WEIGHTS, StoredWeights


@dataclass(frozen=True, slots=True)
class DraftFiles:
    """The contents of a draft's folder: its config, and (name, tensor) pairs."""

    config: Mapping[str, Any]
    open_weights: Callable[[], Iterable[tuple[str, torch.Tensor]]]


@dataclass(frozen=True, slots=True)
class ModelSources:
    """The sources of a model. open_weights returns (name, tensor) pairs; choose_attention picks the backend for a
    spec (and logs refusals). make_proposer, open_draft and make_lora_manager are None without speculation, draft models
    and adapters. stored reads the weights' size from file headers."""

    config: Mapping[str, Any]
    open_weights: Callable[[], Iterable[tuple[str, torch.Tensor]]]
    choose_attention: Callable[[AttentionSpec], AttentionBackend]
    architectures: Architectures
    make_proposer: ProposerMaker | None = None
    open_draft: Callable[[str], DraftFiles] | None = None
    make_lora_manager: Callable[[LoraSpec], LoraManager] | None = None
    stored: Callable[[], StoredWeights] = lambda: NO_WEIGHTS
