"""Every hook, in life-cycle order. An implementation may take fewer arguments than its specification.

Hooks hand out strategy objects or observe a request; none is called in a step (a test holds that down).
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
        LoraFactory,
        PrefixCacheFactory,
        ReasoningParserFactory,
        RunnerFactory,
        SchedulerFactory,
        ToolParserFactory,
        WeightFormatFactory,
    )
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
"""The level of hooks and contracts here. It grows when a plugin may need what an older plugserve hasn't."""
OLDEST_API = 1
"""The oldest level whose plugins still work, with a warning."""


class Retirement(DeprecationWarning):
    """The warning about a plugin that uses what is going away: a hook, or an argument of one.

    It is marked with pluggy's @hookspec(warn_on_impl=Retirement(...)) or warn_on_impl_args={"argument": ...} when its
    replacement arrives, and stays for one level at least.
    """

    def __init__(self, what: str, *, gone_in: int, advice: str) -> None:
        super().__init__(f"{what} goes away with hook level {gone_in}; {advice}")


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
    """Attention backends by the name that `--attention` takes. Called as plugserve_schedulers; the factories in
    question are called in the engine process with an AttentionContext. Import torch or triton inside the factory, never
    at the top of the plugin's module."""
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
    """Model runners by the name that `--runner` takes. The chosen factory is called once in the engine process with a
    RunnerContext: source is the model's files, choose_attention(AttentionSpec) returns the AttentionBackend that
    --attention stands for; a runner that owns its attention doesn't call it."""
    raise NotImplementedError


@hookspec
def plugserve_architectures() -> Mapping[str, ArchitectureFunction]:
    """Model architectures by the name that config.json gives them ("LlamaForCausalLM"): each a function from the config
    (a dict) to a DecoderSpec, or to a ModelDefinition for a model with torch code of its own. The function's docstring
    says in a line which models that are. Called once when the plugin is loaded, in every process; the function once in
    the engine process. Raise ModelError for what isn't supported."""
    raise NotImplementedError


@hookspec
def plugserve_weight_formats() -> Mapping[str, WeightFormatFactory]:
    """Weight formats by the name that `--load-format` takes. The factories are called once in the engine process with
    a WeightFormatContext; `auto` takes the first automatic format that doesn't refuse the model."""
    raise NotImplementedError


@hookspec
def plugserve_tool_parsers() -> Mapping[str, ToolParserFactory]:
    """Parsers of tool calls by the name that `--tool-call-parser` takes. The factory is called in a server worker with
    the request's tools (OpenAI's form, may be empty), once at the start and once for each answer that may hold
    calls."""
    raise NotImplementedError


@hookspec
def plugserve_reasoning_parsers() -> Mapping[str, ReasoningParserFactory]:
    """Parsers of thinking by the name that `--reasoning-parser` takes. The factory is called in a server worker with
    what the prompt already holds of the answer (what the chat template writes after the last message, or the message
    that is continued), once at the start and once for each answer."""
    raise NotImplementedError


# ---------------------------------------------------------------- life cycle


@hookspec
def plugserve_configure(config: SettingsView) -> None:
    """All settings are read and valid; raise plugserve.ConfigError to refuse them. Every process, once, before
    anything is built. config holds the settings that plugins may read; keys are not among them."""


@hookspec
def plugserve_engine_started(engine: EngineHandle) -> None:
    """The model is loaded and the engine can answer. Engine process, once."""


@hookspec
def plugserve_engine_stopping(engine: EngineHandle) -> None:
    """The engine leaves in good order (not called when it crashes). Engine process, once."""


@hookspec
def plugserve_register_routes(app: Any, engines: Mapping[str, EngineHandle]) -> None:
    """Add routes to the Sanic app of a server worker. Each worker, once, before it listens. engines fills as models
    come up, by model name. `--api-key` guards these routes too, but for those added with ctx_without_key=True (pages
    that hold no data)."""


# ---------------------------------------------------------------- per request, in a server worker; may be async


@hookspec
def plugserve_authorize(
    request: RequestView,
) -> Refusal | Identity | Awaitable[Refusal | Identity | None] | None:
    """May this request pass, and who sends it? The first Refusal wins and is sent to the client; the first Identity
    becomes request.identity, for hooks, schedulers and what belongs to a tenant; None lets the request pass. Called
    before the body is read into a prompt, once a request with a right key, for every route but /health, /ready, /ping,
    /version, /load, /metrics and pages without data. A raise refuses with 500."""


@hookspec
def plugserve_request_received(request: RequestView) -> Mapping[str, Any] | Awaitable[Mapping[str, Any] | None] | None:
    """A request for text or vectors arrived. Return a mapping to replace its body (validated like a client's), None to
    leave it. Once a request, after authorize, in order of plugin activation, each seeing the last one's result."""


@hookspec
def plugserve_sampling_params(
    request: RequestView, params: SamplingParams, num_choices: int, num_prompts: int
) -> SamplingParams | Awaitable[SamplingParams | None] | None:
    """A request's sampling parameters are checked, whatever API it came by. Return SamplingParams in their place
    (msgspec.structs.replace(params, max_tokens=...)), None to leave them, or raise RequestError to refuse the request.
    num_choices answers are generated for each of num_prompts prompts; each has params of its own, with another seed.
    Once for each number of tokens that the request's prompts leave room for, mostly once a request that generates
    text, in order of plugin activation, each seeing the last one's result. The result is not checked again. A raise
    refuses the request with 500."""


@hookspec
def plugserve_request_finished(
    request: RequestView, usage: RequestUsage, timings: RequestTimings
) -> Awaitable[None] | None:
    """A request for text or vectors has been answered or aborted (timings.finish_reason says which). Once a request."""


@hookspec
def plugserve_error(request: RequestView, error: Exception) -> Awaitable[None] | None:
    """A request failed with error: a RequestError (the client's fault) or anything else (ours). Once a request,
    after the error response has been sent."""


@hookspec
def plugserve_request_ended(request: RequestView, outcome: RequestOutcome) -> Awaitable[None] | None:
    """A request that plugserve_authorize was asked about has ended: answered, refused, failed, or left by its client.
    Exactly once for each such request of any route and method, after the request's other hooks, also for plugins that
    failed in one of those. When a worker process dies, what plugins counted there is gone with it."""
