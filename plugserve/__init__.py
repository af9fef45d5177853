"""plugserve: a plugin-based server for large language models. The public names for plugin authors; nothing heavy."""

from importlib.metadata import PackageNotFoundError, version

from plugserve.core.contracts import (
    AttentionBackend,
    AttentionBatch,
    AttentionSpec,
    EngineHandle,
    KVLayout,
    ModelRunner,
    NewRow,
    PluginContext,
    PrefixCache,
    ReasoningParser,
    Refusal,
    RequestTimings,
    RequestUsage,
    RequestView,
    RunnerInfo,
    Scheduler,
    SequenceView,
    StepBudget,
    StepInput,
    StepPlan,
    StepResult,
    StepTime,
    ToolCallDelta,
    ToolDelta,
    ToolParser,
    WeightFormat,
    WeightSource,
)
from plugserve.core.errors import (
    ConfigError,
    EngineError,
    EngineUnavailableError,
    ModelError,
    PlanError,
    PluginError,
    PlugserveError,
    RequestError,
    RequestFailedError,
    UserError,
)
from plugserve.core.hookspecs import PLUGSERVE_API, hookimpl
from plugserve.core.models.decoder_spec import DecoderSpec, RopeSpec
from plugserve.core.models.families import llama_like

try:
    __version__ = version("plugserve")
except PackageNotFoundError:  # a bare checkout; the CLI says what to do about it
    __version__ = "0+not-installed"

__all__ = [
    "PLUGSERVE_API",
    "AttentionBackend",
    "AttentionBatch",
    "AttentionSpec",
    "ConfigError",
    "DecoderSpec",
    "EngineError",
    "EngineHandle",
    "EngineUnavailableError",
    "KVLayout",
    "ModelError",
    "ModelRunner",
    "NewRow",
    "PlanError",
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
    "Scheduler",
    "SequenceView",
    "StepBudget",
    "StepInput",
    "StepPlan",
    "StepResult",
    "StepTime",
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
