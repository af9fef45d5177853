"""The exceptions that plugserve raises.

    PlugserveError
    |-- UserError                 the user can correct it: CLI exit code 2
    |   |-- ConfigError           a setting: flag, file key or environment variable
    |   |   `-- NotCoveredError      a runner that doesn't cover a model or a setting; --runner auto takes another
    |   |-- ModelError            a model that can't be found, read or served
    |   |-- MemoryShortError      memory ran out while a model was loaded
    |   |-- AdapterError          a LoRA adapter that can't be read or served
    |   |-- PluginError           a plugin that can't be loaded, or breaks its contract at start
    |   `-- RequestError          a request: HTTP 4xx (carries status, code, param)
    `-- EngineError               our side: HTTP 5xx
        |-- EngineUnavailableError   no engine can take the request now (loading, dead, stopping): 503
        |   |-- QueueFullError       too many requests wait already: 503
        |   `-- ModelNotLoadedError  the model can't be loaded now (carries when to try again): 503
        |-- UpstreamError             the server that a router sent the request to broke off: 502
        |-- RequestTimeoutError      the request took longer than the server allows: 504
        |-- PluginCallError          a plugin raised or took too long in a call for one request: 500
        |-- RequestFailedError       this request failed in the engine; others go on: 500
        |   |-- GrammarError           its grammar is too large, or can't go on: 400
        |   `-- AdapterGoneError       its LoRA adapter was unloaded before it reached the engine: 404
        |-- PlanError                a scheduler returned a plan that breaks its budget (names the plugin)
        `-- PartialFailureError      some requests of one call of LLM failed; it holds the others' outputs

A message is one line: what was wrong, the value, and the fix.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence


class PlugserveError(Exception):
    """Base of every exception that plugserve raises."""


class UserError(PlugserveError):
    """The user's fault; the message contains the fix. The CLI prints it as one line and exits with 2."""


class ConfigError(UserError):
    """A setting is unknown, malformed, or contradicts another one."""


class NotCoveredError(ConfigError):
    """A runner doesn't cover the model or a setting; --runner auto takes the next one."""


class ModelError(UserError):
    """A model can't be found, read, or served as asked."""


class MemoryShortError(UserError):
    """An allocation failed while a model was loaded. The message says which."""


class AdapterError(UserError):
    """A LoRA adapter can't be read, or not be served by this model."""


class PluginError(UserError):
    """A selected plugin can't be loaded or breaks its contract. The message names plugin and cause."""


class RequestError(UserError):
    """A client's request can't be served as it stands.

    status is the HTTP status (4xx), code a short machine-readable word or None, param the field at fault.
    """

    def __init__(self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


class EngineError(PlugserveError):
    """The server's fault; the message may be sent to a client."""


class EngineUnavailableError(EngineError):
    """No engine can take the request now: it is loading, stopping, or has died. HTTP 503."""


class QueueFullError(EngineUnavailableError):
    """The queue is full. HTTP 503."""


class UpstreamError(EngineError):
    """The server that a router sent the request to broke off before it had answered. HTTP 502."""


class ModelNotLoadedError(EngineUnavailableError):
    """The model that a request names could not be loaded. HTTP 503, with Retry-After retry_s."""

    def __init__(self, message: str, *, retry_s: float = 1.0) -> None:
        super().__init__(message)
        self.headers = {"Retry-After": str(max(1, math.ceil(retry_s)))}


class RequestTimeoutError(EngineError):
    """The request waited and ran for longer than the server allows. HTTP 504."""


class PluginCallError(EngineError):
    """A plugin raised, or took longer than it may, in a call for one request. HTTP 500, code plugin_failed."""

    def __init__(self, plugin: str, hook: str, reason: str) -> None:
        super().__init__(f"plugin {plugin!r} failed in {hook}: {reason}")
        self.plugin = plugin
        self.hook = hook


class RequestFailedError(EngineError):
    """One request failed inside the engine; other requests are not affected. HTTP 500."""


class GrammarError(RequestFailedError):
    """The request's grammar can't be used, or can't go on from what was generated. HTTP 400."""


class AdapterGoneError(RequestFailedError):
    """The request's LoRA adapter was unloaded before the request reached the engine. HTTP 404."""


class PlanError(EngineError):
    """A scheduler's plan breaks a rule. The message names the scheduler, the rule and the sequence.

    sequence_id is the sequence at fault, or None when the plan as a whole is.
    """

    def __init__(self, message: str, *, sequence_id: int | None = None) -> None:
        super().__init__(message)
        self.sequence_id = sequence_id


class PartialFailureError(EngineError):
    """Some requests of one call failed; __cause__ is the first failure.

    outputs holds the outputs of all requests, in order; those that failed have their error there.
    """

    def __init__(self, message: str, outputs: Sequence[object]) -> None:
        super().__init__(message)
        self.outputs = outputs


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known name nearest to name, or "" where none is near."""
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def one_line(error: BaseException) -> str:
    """An exception's type and text in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
