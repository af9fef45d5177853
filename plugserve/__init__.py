"""plugserve: a plugin-based server for large language models. The public names, for plugin authors and programs.

Imports nothing until a name needs it.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
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
    from plugserve.core.engine.ranks.rank_process import run_rank
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


_MODULES = {
    "core.contracts.answers": "AnswerDelta ReasoningParser ToolCallDelta ToolParser",
    "core.contracts.attention": "AttentionBackend AttentionBatch AttentionSpec KVLayout",
    "core.contracts.drafting": "DraftProposer DraftRunner Drafts DraftStep",
    "core.contracts.encoding": "EncoderInput EncoderRunner",
    "core.contracts.engine_facts": "EngineHandle EngineInfo EngineStats",
    "core.contracts.executor": "Executor RankEnd RankLink RankPlace RankPlaces",
    "core.contracts.factories": (
        "ArchitectureFunction AttentionContext AttentionFactory DraftProposerContext DraftProposerFactory "
        "ExecutorContext ExecutorFactory FactoryContext LoraContext LoraFactory PrefixCacheContext "
        "PrefixCacheFactory ProposerMaker ReasoningParserFactory RunnerContext RunnerFactory SchedulerContext "
        "SchedulerFactory ToolParserFactory WeightFormatContext WeightFormatFactory"
    ),
    "core.contracts.lora": "LoraManager LoraSite LoraSlice LoraSpec",
    "core.contracts.memory": "MemoryEstimator MemoryItem MemoryLedger MemoryPlace MemoryUse",
    "core.contracts.metrics": (
        "CounterValue GaugeValue HistogramValue MetricCounter MetricGauge MetricHistogram PluginMetrics"
    ),
    "core.contracts.model": "DecoderSpec ModelDefinition ModelStep Parameter RopeSpec",
    "core.contracts.parallel": "RankPlacement",
    "core.contracts.prefix_cache": "PrefixCache",
    "core.contracts.requests": "Identity Refusal RequestOutcome RequestTimings RequestUsage RequestView",
    "core.contracts.runner": "LengthRule LoadStage ModelRunner NewRow RunnerInfo StepInput StepResult",
    "core.contracts.sampling": "TokenLogprobs",
    "core.contracts.scheduling": "Scheduler SequenceView StepBudget StepPlan StepTime",
    "core.contracts.settings_view": "SettingsView",
    "core.contracts.weights": "ModelSource WeightFormat WeightSource",
    "core.engine.ranks.rank_process": "run_rank",
    "core.errors": (
        "AdapterError ConfigError EngineError EngineUnavailableError ModelError PartialFailureError PlanError "
        "PluginCallError PluginError PlugserveError RequestError RequestFailedError UserError"
    ),
    "core.model_files.families": "llama_like",
    "core.model_files.fill_parameters": "fill_parameters",
    "core.plugin_system.hookspecs": "PLUGSERVE_API hookimpl",
    "offline.calls": "LoRARequest",
    "offline.llm": "LLM",
    "offline.outputs": "CompletionOutput EmbeddingOutput EmbeddingRequestOutput Logprob RequestOutput",
    "offline.sampling_params": "SamplingParams StructuredOutputsParams",
}
"""The public names by module. A module is imported when one of its names is used: a process that needs none starts
faster."""

_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}
_OLD_NAMES = {
    "PluginContext": ("FactoryContext", "PluginContext is now FactoryContext, and each kind has its own"),
    "ToolDelta": ("AnswerDelta", "ToolDelta is now AnswerDelta"),
}


def __getattr__(name: str) -> object:
    """A public name, from its module; names of earlier hook levels work with a warning."""
    if name in _OLD_NAMES:
        new, message = _OLD_NAMES[name]
        warnings.warn(message, DeprecationWarning, 2)
        return __getattr__(new)
    if name == "__version__":
        value: object = _version()
    elif name in _MODULE_OF:
        value = getattr(import_module(f"plugserve.{_MODULE_OF[name]}"), name)
    else:
        raise AttributeError(f"module 'plugserve' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("plugserve")
    except PackageNotFoundError:  # a checkout that isn't installed; the CLI's error contains the fix
        return "0+not-installed"
