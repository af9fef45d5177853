"""Logs one line for each request that is answered, aborted or failed. Off with --disable-log-requests."""

from __future__ import annotations

import json
import logging

from plugserve.core.contracts.requests import RequestTimings, RequestUsage, RequestView
from plugserve.core.contracts.settings_view import SettingsView
from plugserve.core.errors import EngineError, RequestError
from plugserve.core.plugin_system.hookspecs import hookimpl
from plugserve.core.wire.failures import failure_of

log = logging.getLogger("plugserve.request")


@hookimpl
def plugserve_configure(config: SettingsView) -> None:
    """--disable-log-requests closes the logger, in this process."""
    log.disabled = config.disable_log_requests


@hookimpl
def plugserve_request_finished(request: RequestView, usage: RequestUsage, timings: RequestTimings) -> None:
    """The line of a request that was answered or aborted."""
    first_token = "none" if timings.first_token_s is None else f"{timings.first_token_s:.3f}"
    log.info(
        "finished id=%s path=%s model=%s prompt_tokens=%d cached_tokens=%d generated_tokens=%d finish_reason=%s "
        "first_token_s=%s total_s=%.3f",
        _word(request.id),
        _word(request.path),
        _word(request.model),
        usage.num_prompt_tokens,
        usage.num_cached_tokens,
        usage.num_generated_tokens,
        timings.finish_reason,
        first_token,
        timings.total_s,
    )


@hookimpl
def plugserve_error(request: RequestView, error: Exception) -> None:
    """The line of a request that failed, with the status of its answer; the client's fault and overload are logged at
    INFO."""
    status, is_expected = _status(error)
    log.log(
        logging.INFO if is_expected else logging.ERROR,
        "failed id=%s path=%s model=%s status=%d error=%s",
        _word(request.id),
        _word(request.path),
        _word(request.model),
        status,
        _word(f"{type(error).__name__}: {error}"),
    )


def _status(error: Exception) -> tuple[int, bool]:
    """(the status of the answer, whether the fault is the client's or overload)."""
    if isinstance(error, RequestError):
        return error.status, True
    if not isinstance(error, EngineError):
        return 500, False
    failure = failure_of(error)
    return failure.status, not failure.is_logged


def _word(text: str | None) -> str:
    """One word for a key=value line. Clients choose these texts, so line breaks and blanks are quoted."""
    if text is None:
        return "none"
    return text if text.isprintable() and not any(mark in text for mark in ' "=') and text else json.dumps(text)
