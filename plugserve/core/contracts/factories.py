"""The factories that plugins provide, and the context that they are called with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from plugserve.core.contracts.answers import ReasoningParser, ToolParser
from plugserve.core.contracts.attention import AttentionBackend, AttentionSpec
from plugserve.core.contracts.lora import LoraManager, LoraSpec
from plugserve.core.contracts.prefix_cache import PrefixCache
from plugserve.core.contracts.runner import ModelRunner
from plugserve.core.contracts.scheduling import Scheduler
from plugserve.core.contracts.speculation import DraftProposer, DraftRunner
from plugserve.core.contracts.weights import WeightFormat

if TYPE_CHECKING:
    from plugserve.core.contracts.model import DecoderSpec


@dataclass(frozen=True, slots=True)
class PluginContext:
    """What a factory gets. options is the plugin's own validated options object (None if it declares none).

    device and dtype are torch's names; spec is None before the model is known (schedulers, prefix caches of a
    simulation). config is the read-only settings object. architectures and weight_formats are what active plugins
    provide, by name; runners need them.

    make_proposer is how a runner gets the active DraftProposer while it loads (called with what else its context
    should hold, by name), None without one. build_runner and reserve_kv are for proposers: build_runner loads a draft
    model (an id, a folder or a .gguf file) beside the served one, reserve_kv sets bytes aside for each token that the
    KV cache holds.

    lora_spec is for factories of LoRA managers. make_lora_manager is for runners: None where no plugin serves adapters;
    a runner that can calls it once, in load.
    """

    options: Any
    config: Any
    device: str = "cpu"
    dtype: str = "float32"
    block_size: int = 16
    max_model_len: int = 0
    spec: AttentionSpec | None = None
    architectures: Mapping[str, ArchitectureFunction] = field(default_factory=dict)
    weight_formats: Mapping[str, WeightFormat] = field(default_factory=dict)
    make_proposer: Callable[..., DraftProposer] | None = None
    build_runner: Callable[[str], DraftRunner] | None = None
    reserve_kv: Callable[[int], None] | None = None
    lora_spec: LoraSpec | None = None
    make_lora_manager: Callable[[LoraSpec], LoraManager] | None = None


SchedulerFactory = Callable[[PluginContext], Scheduler]
AttentionFactory = Callable[[PluginContext], AttentionBackend]
PrefixCacheFactory = Callable[[PluginContext], PrefixCache]
DraftProposerFactory = Callable[[PluginContext], DraftProposer]
LoraFactory = Callable[[PluginContext], LoraManager]
ArchitectureFunction = Callable[[Mapping[str, Any]], "DecoderSpec"]
WeightFormatFactory = Callable[[PluginContext], WeightFormat]
RunnerFactory = Callable[..., ModelRunner]
ToolParserFactory = Callable[[Sequence[Mapping[str, Any]]], ToolParser]
ReasoningParserFactory = Callable[[str], ReasoningParser]
