"""One table of how requests fail: the engine's code, the exception, and the error that the client gets.

Everything else derives from it: what a server worker raises for an engine's code, the HTTP status and error code of an
answer, and whether a failure is logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from plugserve.core.errors import (
    AdapterGoneError,
    EngineError,
    EngineUnavailableError,
    GrammarError,
    ModelNotLoadedError,
    PluginCallError,
    QueueFullError,
    RequestFailedError,
    RequestTimeoutError,
    UpstreamError,
)
from plugserve.core.wire.messages import (
    FINISH_ABORT,
    FINISH_BAD_GRAMMAR,
    FINISH_COMPLETE,
    FINISH_ERROR,
    FINISH_LENGTH,
    FINISH_NO_ADAPTER,
    FINISH_NONE,
    FINISH_REFUSED,
    FINISH_STOP,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """error covers its subclasses, unless they have a row of their own. finish: the code with which an engine
    reports it, None for failures outside of engines. message: for clients, where the engine gives none. is_logged:
    False for clients' faults and for overload, which metrics count."""

    error: type[EngineError]
    status: int
    code: str
    finish: int | None = None
    message: str = ""
    param: str | None = None
    is_logged: bool = True


FAILURES: Final = (
    Failure(
        QueueFullError,
        503,
        "queue_full",
        FINISH_REFUSED,
        "The server is busy; try again in a moment.",
        is_logged=False,
    ),
    Failure(
        AdapterGoneError,
        404,
        "model_not_found",
        FINISH_NO_ADAPTER,
        "The LoRA adapter has just been unloaded.",
        param="model",
        is_logged=False,
    ),
    Failure(GrammarError, 400, "invalid_grammar", FINISH_BAD_GRAMMAR, "The grammar can't be used.", is_logged=False),
    Failure(RequestFailedError, 500, "engine_error", FINISH_ERROR, "The request failed in the engine."),
    Failure(RequestTimeoutError, 504, "request_timeout"),
    Failure(ModelNotLoadedError, 503, "model_not_loaded", param="model", is_logged=False),
    Failure(EngineUnavailableError, 503, "engine_unavailable"),
    Failure(UpstreamError, 502, "upstream_failed"),
    Failure(PluginCallError, 500, "plugin_failed"),
    Failure(EngineError, 500, "engine_error"),
)

FAILURES_BY_FINISH: Final[Mapping[int, Failure]] = {
    failure.finish: failure for failure in FAILURES if failure.finish is not None
}
FINISH_REASONS: Final[Mapping[int, str | None]] = {
    FINISH_NONE: None,
    FINISH_STOP: "stop",
    FINISH_COMPLETE: "stop",
    FINISH_LENGTH: "length",
    FINISH_ABORT: "abort",
    **dict.fromkeys(FAILURES_BY_FINISH, "error"),
}
"""The finish_reason of every code."""

_FAILURES_BY_ERROR: Final = {failure.error: failure for failure in FAILURES}


def failure_of(error: EngineError) -> Failure:
    """The row of the nearest class of error."""
    return next(_FAILURES_BY_ERROR[kind] for kind in type(error).__mro__ if kind in _FAILURES_BY_ERROR)
