"""The factories that plugins provide, and the context that each kind is called with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from plugserve.core.contracts.answers import ReasoningParser, ToolParser
from plugserve.core.contracts.attention import AttentionBackend, AttentionSpec
from plugserve.core.contracts.drafting import DraftProposer, DraftRunner
from plugserve.core.contracts.encoding import EncoderRunner
from plugserve.core.contracts.executor import Executor, OnEnd, OnMessage
from plugserve.core.contracts.lora import LoraManager, LoraSpec
from plugserve.core.contracts.model import DecoderSpec, ModelDefinition
from plugserve.core.contracts.parallel import ALONE, RankPlacement
from plugserve.core.contracts.prefix_cache import PrefixCache
from plugserve.core.contracts.runner import ModelRunner
from plugserve.core.contracts.scheduling import Scheduler
from plugserve.core.contracts.settings_view import SettingsView
from plugserve.core.contracts.weights import ModelSource, WeightFormat


@dataclass(frozen=True, slots=True)
class FactoryContext:
    """The context of every factory. options is the plugin's own validated options object (None if it declares none),
    config holds the settings that plugins may read. Devices and dtypes are torch's names."""

    options: Any
    config: SettingsView

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            if name.startswith("__"):
                raise AttributeError(name)
            known = ", ".join(one.name for one in fields(self))
            raise AttributeError(f"{type(self).__name__} has no {name!r}; it has {known}")


@dataclass(frozen=True, slots=True)
class SchedulerContext(FactoryContext):
    """The context of a scheduler. In a simulation device is "simulated"."""

    device: str
    dtype: str
    block_size: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class PrefixCacheContext(FactoryContext):
    """The context of a prefix cache. In a simulation device is "simulated"."""

    device: str
    dtype: str
    block_size: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class AttentionContext(FactoryContext):
    """The context of an attention backend: the attention of the model, and the size of a KV block in tokens."""

    spec: AttentionSpec
    block_size: int

    @property
    def device(self) -> str:
        return self.spec.device

    @property
    def dtype(self) -> str:
        return self.spec.dtype


@dataclass(frozen=True, slots=True)
class DraftProposerContext(FactoryContext):
    """The context of a draft proposer. spec is the served model's attention. build_runner loads a draft model (an id, a
    folder or a .gguf file) beside the served one; reserve_kv sets bytes aside for each token that the KV cache
    holds."""

    spec: AttentionSpec
    block_size: int
    max_model_len: int
    build_runner: Callable[[str], DraftRunner]
    reserve_kv: Callable[[int], None]

    @property
    def device(self) -> str:
        return self.spec.device

    @property
    def dtype(self) -> str:
        return self.spec.dtype


@dataclass(frozen=True, slots=True)
class LoraContext(FactoryContext):
    """The context of a LoRA manager: lora_spec describes the model."""

    lora_spec: LoraSpec

    @property
    def device(self) -> str:
        return self.lora_spec.device

    @property
    def dtype(self) -> str:
        return self.lora_spec.dtype


@dataclass(frozen=True, slots=True)
class WeightFormatContext(FactoryContext):
    """The context of a weight format."""


@dataclass(frozen=True, slots=True)
class ExecutorContext(FactoryContext):
    """The context of an executor: the served name of the model, its files, and how many ranks share it, with that of
    the caller. on_message and on_end take what ranks send and which one is lost."""

    model: str
    source: ModelSource
    num_ranks: int
    on_message: OnMessage
    on_end: OnEnd


class ProposerMaker(Protocol):
    """Makes the active DraftProposer for a runner, which calls it at most once, in load (see DraftProposerContext)."""

    def __call__(
        self,
        *,
        spec: AttentionSpec,
        max_model_len: int,
        build_runner: Callable[[str], DraftRunner],
        reserve_kv: Callable[[int], None],
    ) -> DraftProposer: ...


def _ignored(share: float) -> None:
    """The default of RunnerContext.note_progress."""


@dataclass(frozen=True, slots=True)
class RunnerContext(FactoryContext):
    """The context of a model runner. source is the model's files. choose_attention returns the backend that --attention
    selects; a runner that owns its attention doesn't call it.

    architectures and weight_formats are what active plugins provide, by name. make_proposer is None without
    speculation, make_lora_manager where no plugin serves adapters; a runner that can calls each once, in load.
    note_progress takes the share of the model that load has read, from 0 to 1, for clients that wait for it.

    placement is this process's among those that share the model. It has several ranks only for a runner whose
    shares_models is True (see ModelRunner): every rank's runner then gets the same calls in the same order.
    """

    source: ModelSource
    choose_attention: Callable[[AttentionSpec], AttentionBackend]
    block_size: int
    architectures: Mapping[str, ArchitectureFunction]
    weight_formats: Mapping[str, WeightFormat]
    make_proposer: ProposerMaker | None
    make_lora_manager: Callable[[LoraSpec], LoraManager] | None
    note_progress: Callable[[float], None] = _ignored
    placement: RankPlacement = ALONE


SchedulerFactory = Callable[[SchedulerContext], Scheduler]
AttentionFactory = Callable[[AttentionContext], AttentionBackend]
PrefixCacheFactory = Callable[[PrefixCacheContext], PrefixCache]
DraftProposerFactory = Callable[[DraftProposerContext], DraftProposer]
LoraFactory = Callable[[LoraContext], LoraManager]
ExecutorFactory = Callable[[ExecutorContext], Executor]
RunnerFactory = Callable[[RunnerContext], ModelRunner | EncoderRunner]
WeightFormatFactory = Callable[[WeightFormatContext], WeightFormat]
ArchitectureFunction = Callable[[Mapping[str, Any]], DecoderSpec | ModelDefinition]
ToolParserFactory = Callable[[Sequence[Mapping[str, Any]]], ToolParser]
ReasoningParserFactory = Callable[[str], ReasoningParser]
