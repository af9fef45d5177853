"""plugserve: a plugin-based server for large language models. The public names for plugin authors; nothing heavy."""

from importlib.metadata import PackageNotFoundError, version

from plugserve.core.contracts.answers import ReasoningParser, ToolCallDelta, ToolDelta, ToolParser
from plugserve.core.contracts.attention import AttentionBackend, AttentionBatch, AttentionSpec, KVLayout
from plugserve.core.contracts.engine_facts import EngineHandle, EngineInfo, EngineStats
from plugserve.core.contracts.factories import PluginContext
from plugserve.core.contracts.lora import LoraManager, LoraSite, LoraSlice, LoraSpec
from plugserve.core.contracts.model import DecoderSpec, RopeSpec
from plugserve.core.contracts.prefix_cache import PrefixCache
from plugserve.core.contracts.requests import Refusal, RequestTimings, RequestUsage, RequestView
from plugserve.core.contracts.runner import LengthRule, ModelRunner, NewRow, RunnerInfo, StepInput, StepResult
from plugserve.core.contracts.sampling import SamplingParams, TokenLogprobs
from plugserve.core.contracts.scheduling import Scheduler, SequenceView, StepBudget, StepPlan, StepTime
from plugserve.core.contracts.speculation import DraftProposer, DraftRunner, Drafts, DraftStep
from plugserve.core.contracts.weights import WeightFormat, WeightSource
from plugserve.core.errors import (
    AdapterError,
    ConfigError,
    EngineError,
    EngineUnavailableError,
    ModelError,
    PlanError,
    PluginCallError,
    PluginError,
    PlugserveError,
    RequestError,
    RequestFailedError,
    UserError,
)
from plugserve.core.model_files.families import llama_like
from plugserve.core.plugin_system.hookspecs import PLUGSERVE_API, hookimpl

try:
    __version__ = version("plugserve")
except PackageNotFoundError:  # a bare checkout; the CLI says what to do about it
    __version__ = "0+not-installed"

__all__ = [
    "PLUGSERVE_API",
    "AdapterError",
    "AttentionBackend",
    "AttentionBatch",
    "AttentionSpec",
    "ConfigError",
    "DecoderSpec",
    "DraftProposer",
    "DraftRunner",
    "DraftStep",
    "Drafts",
    "EngineError",
    "EngineHandle",
    "EngineInfo",
    "EngineStats",
    "EngineUnavailableError",
    "KVLayout",
    "LengthRule",
    "LoraManager",
    "LoraSite",
    "LoraSlice",
    "LoraSpec",
    "ModelError",
    "ModelRunner",
    "NewRow",
    "PlanError",
    "PluginCallError",
    "PluginContext",
    "PluginError",
    "PlugserveError",
    "PrefixCache",
    "ReasoningParser",
    "Refusal",
    "RequestError",
    "RequestFailedError",
    "RequestTimings",
    "RequestUsage",
    "RequestView",
    "RopeSpec",
    "RunnerInfo",
    "SamplingParams",
    "Scheduler",
    "SequenceView",
    "StepBudget",
    "StepInput",
    "StepPlan",
    "StepResult",
    "StepTime",
    "TokenLogprobs",
    "ToolCallDelta",
    "ToolDelta",
    "ToolParser",
    "UserError",
    "WeightFormat",
    "WeightSource",
    "__version__",
    "hookimpl",
    "llama_like",
]
