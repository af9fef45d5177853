"""Every hook, in life-cycle order. An implementation may take fewer arguments than its specification.

Hooks provide strategy objects, or observe and decide requests; none is called in a step (a test checks it).
"Every process" means the supervisor, each server worker and each engine process.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pydantic import BaseModel

    from plugserve.core.contracts.engine_facts import EngineHandle
    from plugserve.core.contracts.factories import (
        ArchitectureFunction,
        AttentionFactory,
        DraftProposerFactory,
        ExecutorFactory,
        LoraFactory,
        PrefixCacheFactory,
        ReasoningParserFactory,
        RunnerFactory,
        SchedulerFactory,
        ToolParserFactory,
        WeightFormatFactory,
    )
    from plugserve.core.contracts.metrics import PluginMetrics
    from plugserve.core.contracts.requests import (
        Identity,
        Refusal,
        RequestOutcome,
        RequestTimings,
        RequestUsage,
        RequestView,
    )
    from plugserve.core.contracts.sampling import SamplingParams
    from plugserve.core.contracts.settings_view import SettingsView

PROJECT = "plugserve"

PLUGSERVE_API = 2
"""The hook level of this version. It rises when hooks or contracts gain something that a plugin may depend on."""
OLDEST_API = 1
"""The oldest level whose plugins still work, with a warning."""


class Retirement(DeprecationWarning):
    """The warning about a plugin that uses a deprecated hook or argument.

    Mark the hook with pluggy's @hookspec(warn_on_impl=Retirement(...)), an argument with warn_on_impl_args={"argument":
    ...}, in the level that adds the replacement; remove it one level later at the earliest.
    """

    def __init__(self, what: str, *, gone_in: int, advice: str) -> None:
        super().__init__(f"{what} will be removed in hook level {gone_in}; {advice}")


hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# ---------------------------------------------------------------- set-up: what a plugin declares and provides


@hookspec
def plugserve_options() -> type[BaseModel]:
    """The plugin's own settings: a pydantic model that forbids extra keys, every field with a default.

    Becomes flags (`--NAME.field value`), a config-file table (`plugins.NAME.field`), environment variables
    (`PLUGSERVE_PLUGINS__NAME__FIELD`) and documentation. Every process, once, when the plugin is loaded.
    """
    raise NotImplementedError


@hookspec
def plugserve_schedulers() -> Mapping[str, SchedulerFactory]:
    """Schedulers by the name that `--scheduler` takes. Called once when the plugin is loaded, in every process (to
    list and check); the chosen factory is called once in the engine process with a SchedulerContext."""
    raise NotImplementedError


@hookspec
def plugserve_attention_backends() -> Mapping[str, AttentionFactory]:
    """Attention backends by the name that `--attention` takes. Called when the plugin is loaded, in every process; the
    chosen factory, or with `auto` each until one accepts the model, is called in the engine process with an
    AttentionContext. Import torch or triton inside the factory, never at the top of the plugin's module."""
    raise NotImplementedError


@hookspec
def plugserve_prefix_caches() -> Mapping[str, PrefixCacheFactory]:
    """Prefix caches by name. An optional slot: the one active provider fills it, two are an error. The factory is
    called once in the engine process with a PrefixCacheContext."""
    raise NotImplementedError


@hookspec
def plugserve_draft_proposers() -> Mapping[str, DraftProposerFactory]:
    """Draft proposers (speculative decoding) by name. An optional slot: the one active provider fills it, two are an
    error. The factory is called once in the engine process, while the model loads, with a DraftProposerContext, whose
    build_runner loads a draft model and whose reserve_kv sets KV memory aside for it."""
    raise NotImplementedError


@hookspec
def plugserve_lora_managers() -> Mapping[str, LoraFactory]:
    """LoRA managers by name. An optional slot: the one active provider fills it, two are an error. The factory is
    called once in the engine process, while the runner loads, with a LoraContext, whose lora_spec describes the
    model."""
    raise NotImplementedError


@hookspec
def plugserve_model_runners() -> Mapping[str, RunnerFactory]:
    """Model runners by the name that `--runner` takes. The chosen factory is called in the engine process with a
    RunnerContext: source is the model's files, choose_attention(AttentionSpec) returns the AttentionBackend that
    --attention selects; a runner that owns its attention doesn't call it. For a source whose config is an encoder's
    (BertModel), an EncoderRunner is returned instead of a ModelRunner, or ModelError raised. A runner may be a
    MemoryEstimator: plugserve doctor, and a start that is refused, then make further ones with other settings to find
    what fits, and load none of them, so that a factory takes no memory before load."""
    raise NotImplementedError


@hookspec
def plugserve_executors() -> Mapping[str, ExecutorFactory]:
    """Executors by the name that `--distributed-executor-backend` takes: each runs the processes that share a model
    with the engine's. The chosen factory is called once in the engine process of a model with several ranks, with an
    ExecutorContext; a rank's process calls plugserve.run_rank."""
    raise NotImplementedError


@hookspec
def plugserve_architectures() -> Mapping[str, ArchitectureFunction]:
    """Model architectures by the name that config.json gives them ("LlamaForCausalLM"): each a function from the config
    (a dict) to a DecoderSpec, or to a ModelDefinition for a model with torch code of its own. The function's docstring
    names the models in one line. Called once when the plugin is loaded, in every process; the function once in
    the engine process. Raise ModelError for what isn't supported."""
    raise NotImplementedError


@hookspec
def plugserve_weight_formats() -> Mapping[str, WeightFormatFactory]:
    """Weight formats by the name that `--load-format` takes. Each factory is called once in the engine process with
    a WeightFormatContext; `auto` takes the first automatic format that doesn't refuse the model."""
    raise NotImplementedError


@hookspec
def plugserve_tool_parsers() -> Mapping[str, ToolParserFactory]:
    """Parsers of tool calls by the name that `--tool-call-parser` takes. The factory is called in a server worker with
    the request's tools (OpenAI's form, may be empty), once at the start and once for each answer that may contain
    calls."""
    raise NotImplementedError


@hookspec
def plugserve_reasoning_parsers() -> Mapping[str, ReasoningParserFactory]:
    """Parsers of reasoning by the name that `--reasoning-parser` takes. The factory is called in a server worker with
    the start of the answer that the prompt already contains (what the chat template writes after the last message, or
    the message that is continued), once at the start and once for each answer."""
    raise NotImplementedError


# ---------------------------------------------------------------- life cycle


@hookspec
def plugserve_configure(config: SettingsView) -> None:
    """Check the settings, which are all read and valid; raise plugserve.ConfigError to refuse them. Every process,
    once, before anything is built. config holds the settings that plugins may read, without API keys."""


@hookspec
def plugserve_metrics(metrics: PluginMetrics) -> None:
    """Register the plugin's own metrics, which /metrics shows, and keep the objects that metrics returns: their methods
    may be called from any hook, strategy and thread, and cost under a microsecond. Every process, once, after
    plugserve_configure and before anything is built; server workers and engines share what they count, so that
    counters are sums."""


@hookspec
def plugserve_engine_started(engine: EngineHandle) -> None:
    """The model is loaded and the engine can answer. Engine process, once."""


@hookspec
def plugserve_engine_stopping(engine: EngineHandle) -> None:
    """The engine shuts down (not called when it crashes). Engine process, once."""


@hookspec
def plugserve_register_routes(app: Any, engines: Mapping[str, EngineHandle]) -> None:
    """Add routes to the Sanic app of a server worker. Each worker, once, before it listens. engines maps model names to
    handles; a model is added when it has loaded. `--api-key` protects these routes too, except those added with
    ctx_without_key=True (pages without data)."""


# ---------------------------------------------------------------- per request, in a server worker; may be async


@hookspec
def plugserve_authorize(
    request: RequestView,
) -> Refusal | Identity | Awaitable[Refusal | Identity | None] | None:
    """Accept or refuse a request, and identify its sender. Return a Refusal to send its status and message to the
    client (the first one ends the request), an Identity to set request.identity (the first one counts; schedulers,
    later hooks and tenants use it), or None to accept. Called once a request, after the API key was checked and before
    a prompt is made of the body, for every route except /health, /ready, /ping, /version, /load, /metrics and pages
    without data. An exception refuses the request with 500."""


@hookspec
def plugserve_request_received(request: RequestView) -> Mapping[str, Any] | Awaitable[Mapping[str, Any] | None] | None:
    """Replace the body of a request for text or embeddings: return a mapping (validated like a client's body), or None
    to keep it. Once a request, after plugserve_authorize, in order of plugin activation; each implementation gets the
    body that the one before it returned. Raise RequestError to refuse the request."""


@hookspec
def plugserve_sampling_params(
    request: RequestView, params: SamplingParams, num_choices: int, num_prompts: int
) -> SamplingParams | Awaitable[SamplingParams | None] | None:
    """Replace the sampling parameters of a request that generates text, through any API: return SamplingParams
    (msgspec.structs.replace(params, max_tokens=...)), None to keep params, or raise RequestError to refuse the request.
    num_choices answers are generated for each of num_prompts prompts; each answer gets a copy of the result with a seed
    of its own. Called once for each distinct number of tokens that the prompts leave room for (usually once a request),
    in order of plugin activation; each implementation gets the result of the one before it. The result is not validated
    again. Any other exception refuses the request with 500."""


@hookspec
def plugserve_request_finished(
    request: RequestView, usage: RequestUsage, timings: RequestTimings
) -> Awaitable[None] | None:
    """A request for text or embeddings was answered or aborted (see timings.finish_reason). Once a request."""


@hookspec
def plugserve_error(request: RequestView, error: Exception) -> Awaitable[None] | None:
    """A request failed with error: a RequestError (the client's fault) or another exception (the server's). Once a
    request, after the error response has been sent."""


@hookspec
def plugserve_request_ended(request: RequestView, outcome: RequestOutcome) -> Awaitable[None] | None:
    """A request for which plugserve_authorize was called has ended: answered, refused, failed, or disconnected. Called
    exactly once for each such request of any route and method, after the request's other hooks, also for plugins that
    failed in one of those. Not called for the requests of a worker process that dies."""
