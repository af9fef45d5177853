"""plugserve: a plugin-based server for large language models. The public names, for plugin authors and programs.

Imports nothing heavy until a name needs it.
"""

import warnings
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from plugserve.core.contracts.answers import AnswerDelta, ReasoningParser, ToolCallDelta, ToolParser
from plugserve.core.contracts.attention import AttentionBackend, AttentionBatch, AttentionSpec, KVLayout
from plugserve.core.contracts.drafting import DraftProposer, DraftRunner, Drafts, DraftStep
from plugserve.core.contracts.encoding import EncoderInput, EncoderRunner
from plugserve.core.contracts.engine_facts import EngineHandle, EngineInfo, EngineStats
from plugserve.core.contracts.executor import Executor, RankEnd, RankLink, RankPlace, RankPlaces
from plugserve.core.contracts.factories import (
    ArchitectureFunction,
    AttentionContext,
    AttentionFactory,
    DraftProposerContext,
    DraftProposerFactory,
    ExecutorContext,
    ExecutorFactory,
    FactoryContext,
    LoraContext,
    LoraFactory,
    PrefixCacheContext,
    PrefixCacheFactory,
    ProposerMaker,
    ReasoningParserFactory,
    RunnerContext,
    RunnerFactory,
    SchedulerContext,
    SchedulerFactory,
    ToolParserFactory,
    WeightFormatContext,
    WeightFormatFactory,
)
from plugserve.core.contracts.lora import LoraManager, LoraSite, LoraSlice, LoraSpec
from plugserve.core.contracts.memory import MemoryEstimator, MemoryItem, MemoryLedger, MemoryPlace, MemoryUse
from plugserve.core.contracts.metrics import (
    CounterValue,
    GaugeValue,
    HistogramValue,
    MetricCounter,
    MetricGauge,
    MetricHistogram,
    PluginMetrics,
)
from plugserve.core.contracts.model import DecoderSpec, ModelDefinition, ModelStep, Parameter, RopeSpec
from plugserve.core.contracts.parallel import RankPlacement
from plugserve.core.contracts.prefix_cache import PrefixCache
from plugserve.core.contracts.requests import (
    Identity,
    Refusal,
    RequestOutcome,
    RequestTimings,
    RequestUsage,
    RequestView,
)
from plugserve.core.contracts.runner import (
    LengthRule,
    LoadStage,
    ModelRunner,
    NewRow,
    RunnerInfo,
    StepInput,
    StepResult,
)
from plugserve.core.contracts.sampling import TokenLogprobs
from plugserve.core.contracts.scheduling import Scheduler, SequenceView, StepBudget, StepPlan, StepTime
from plugserve.core.contracts.settings_view import SettingsView
from plugserve.core.contracts.weights import ModelSource, WeightFormat, WeightSource
from plugserve.core.errors import (
    AdapterError,
    ConfigError,
    EngineError,
    EngineUnavailableError,
    ModelError,
    PartialFailureError,
    PlanError,
    PluginCallError,
    PluginError,
    PlugserveError,
    RequestError,
    RequestFailedError,
    UserError,
)
from plugserve.core.model_files.families import llama_like
from plugserve.core.model_files.fill_parameters import fill_parameters
from plugserve.core.plugin_system.hookspecs import PLUGSERVE_API, hookimpl

if TYPE_CHECKING:
    from plugserve.core.engine.ranks.rank_process import run_rank
    from plugserve.offline.calls import LoRARequest
    from plugserve.offline.llm import LLM
    from plugserve.offline.outputs import (
        CompletionOutput,
        EmbeddingOutput,
        EmbeddingRequestOutput,
        Logprob,
        RequestOutput,
    )
    from plugserve.offline.sampling_params import SamplingParams, StructuredOutputsParams

try:
    __version__ = version("plugserve")
except PackageNotFoundError:  # a checkout that isn't installed; the CLI's error contains the fix
    __version__ = "0+not-installed"

__all__ = [
    "LLM",
    "PLUGSERVE_API",
    "AdapterError",
    "AnswerDelta",
    "ArchitectureFunction",
    "AttentionBackend",
    "AttentionBatch",
    "AttentionContext",
    "AttentionFactory",
    "AttentionSpec",
    "CompletionOutput",
    "ConfigError",
    "CounterValue",
    "DecoderSpec",
    "DraftProposer",
    "DraftProposerContext",
    "DraftProposerFactory",
    "DraftRunner",
    "DraftStep",
    "Drafts",
    "EmbeddingOutput",
    "EmbeddingRequestOutput",
    "EncoderInput",
    "EncoderRunner",
    "EngineError",
    "EngineHandle",
    "EngineInfo",
    "EngineStats",
    "EngineUnavailableError",
    "Executor",
    "ExecutorContext",
    "ExecutorFactory",
    "FactoryContext",
    "GaugeValue",
    "HistogramValue",
    "Identity",
    "KVLayout",
    "LengthRule",
    "LoRARequest",
    "LoadStage",
    "Logprob",
    "LoraContext",
    "LoraFactory",
    "LoraManager",
    "LoraSite",
    "LoraSlice",
    "LoraSpec",
    "MemoryEstimator",
    "MemoryItem",
    "MemoryLedger",
    "MemoryPlace",
    "MemoryUse",
    "MetricCounter",
    "MetricGauge",
    "MetricHistogram",
    "ModelDefinition",
    "ModelError",
    "ModelRunner",
    "ModelSource",
    "ModelStep",
    "NewRow",
    "Parameter",
    "PartialFailureError",
    "PlanError",
    "PluginCallError",
    "PluginError",
    "PluginMetrics",
    "PlugserveError",
    "PrefixCache",
    "PrefixCacheContext",
    "PrefixCacheFactory",
    "ProposerMaker",
    "RankEnd",
    "RankLink",
    "RankPlace",
    "RankPlacement",
    "RankPlaces",
    "ReasoningParser",
    "ReasoningParserFactory",
    "Refusal",
    "RequestError",
    "RequestFailedError",
    "RequestOutcome",
    "RequestOutput",
    "RequestTimings",
    "RequestUsage",
    "RequestView",
    "RopeSpec",
    "RunnerContext",
    "RunnerFactory",
    "RunnerInfo",
    "SamplingParams",
    "Scheduler",
    "SchedulerContext",
    "SchedulerFactory",
    "SequenceView",
    "SettingsView",
    "StepBudget",
    "StepInput",
    "StepPlan",
    "StepResult",
    "StepTime",
    "StructuredOutputsParams",
    "TokenLogprobs",
    "ToolCallDelta",
    "ToolParser",
    "ToolParserFactory",
    "UserError",
    "WeightFormat",
    "WeightFormatContext",
    "WeightFormatFactory",
    "WeightSource",
    "__version__",
    "fill_parameters",
    "hookimpl",
    "llama_like",
    "run_rank",
]


_OFFLINE = {
    "LLM": "llm",
    "SamplingParams": "sampling_params",
    "StructuredOutputsParams": "sampling_params",
    "LoRARequest": "calls",
    "CompletionOutput": "outputs",
    "EmbeddingOutput": "outputs",
    "EmbeddingRequestOutput": "outputs",
    "Logprob": "outputs",
    "RequestOutput": "outputs",
}
"""The modules of plugserve.offline that define names for programs; imported when a name is used."""


def __getattr__(name: str) -> object:
    """Names for programs, and names of earlier hook levels, which work with a warning."""
    if name == "run_rank":
        return import_module("plugserve.core.engine.ranks.rank_process").run_rank
    if name in _OFFLINE:
        return getattr(import_module(f"plugserve.offline.{_OFFLINE[name]}"), name)
    if name == "PluginContext":
        warnings.warn("PluginContext is now FactoryContext, and each kind has its own", DeprecationWarning, 2)
        return FactoryContext
    if name == "ToolDelta":
        warnings.warn("ToolDelta is now AnswerDelta", DeprecationWarning, 2)
        return AnswerDelta
    raise AttributeError(f"module 'plugserve' has no attribute {name!r}")
