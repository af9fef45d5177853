"""In which process, when and how often each hook is called: facts for its documentation.

Tests compare them with the code that calls hooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class HookFacts:
    """process: where it is called; when and how_often; since: the first hook
    level that has it. exception: an error that does not count as a failure."""

    process: str
    when: str
    how_often: str
    exception: str = ""
    since: int = 1


_EVERY: Final = "every process: supervisor, server workers, engines"
_WORKER: Final = "server worker"
_ENGINE: Final = "engine"


def _provider(factory: str) -> HookFacts:
    return HookFacts(_EVERY, "the plugin is loaded", f"once a process; {factory}")


_CHOSEN: Final = "the chosen factory once, in the engine"

HOOK_FACTS: Final[Mapping[str, HookFacts]] = {
    "plugserve_options": HookFacts(_EVERY, "the plugin is loaded", "once a process"),
    "plugserve_schedulers": _provider(_CHOSEN),
    "plugserve_attention_backends": _provider("each factory that is tried, once, in the engine"),
    "plugserve_prefix_caches": _provider(_CHOSEN),
    "plugserve_draft_proposers": _provider(_CHOSEN),
    "plugserve_lora_managers": _provider(_CHOSEN),
    "plugserve_model_runners": _provider(
        "the chosen factory once, in the engine, and once for each prediction of memory"
    ),
    "plugserve_executors": HookFacts(
        _EVERY,
        "the plugin is loaded",
        "once a process; the chosen factory once, in the engine of a model with several ranks",
        since=2,
    ),
    "plugserve_architectures": _provider("the function of the model's architecture once, in the engine"),
    "plugserve_weight_formats": _provider("every factory once, in the engine"),
    "plugserve_tool_parsers": _provider(
        "the chosen factory once for each answer that may hold calls, in a server worker"
    ),
    "plugserve_reasoning_parsers": _provider("the chosen factory once for each answer, in a server worker"),
    "plugserve_configure": HookFacts(
        _EVERY, "all settings are read and valid, before anything is built", "once a process"
    ),
    "plugserve_metrics": HookFacts(
        _EVERY, "after plugserve_configure, before anything is built", "once a process", since=2
    ),
    "plugserve_engine_started": HookFacts(
        _ENGINE, "the model is loaded and the engine can answer", "once an engine process"
    ),
    "plugserve_engine_stopping": HookFacts(
        _ENGINE,
        "the engine shuts down (not when it crashes)",
        "once an engine process",
    ),
    "plugserve_register_routes": HookFacts(
        _WORKER,
        "the worker starts, before it listens",
        "once a worker process",
    ),
    "plugserve_authorize": HookFacts(
        _WORKER,
        "a request has arrived and its API key is valid, before a prompt is made of its body",
        "once a request; the first refusal ends the request, and the first identity becomes request.identity",
    ),
    "plugserve_request_received": HookFacts(
        _WORKER,
        "a request for text or embeddings has passed plugserve_authorize, before its body is validated",
        "once a request",
        "(other than a RequestError, which is sent to the client) ",
    ),
    "plugserve_sampling_params": HookFacts(
        _WORKER,
        "a request that generates text has been validated, before it is sent to the engine",
        "usually once a request",
        "(other than a RequestError, which is sent to the client) ",
        since=2,
    ),
    "plugserve_request_finished": HookFacts(
        _WORKER, "a request has been answered, or its client has disconnected", "once a request"
    ),
    "plugserve_error": HookFacts(
        _WORKER, "a request has failed, after the error has been sent", "once a request that fails"
    ),
    "plugserve_request_ended": HookFacts(
        _WORKER,
        "a request for which plugserve_authorize was called has ended, on any route and in any way",
        "once a request",
        since=2,
    ),
}
