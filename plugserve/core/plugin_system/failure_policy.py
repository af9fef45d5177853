"""The consequence of a plugin's failure for each kind of call, and which exceptions are a shutdown instead.

A failure is any exception that a plugin's code raises, including SystemExit and a KeyboardInterrupt or CancelledError
that the plugin raises itself, so that sys.exit() in a hook doesn't end a server.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from enum import Enum
from typing import Final


class FailurePolicy(Enum):
    """The consequence as text: the value completes the sentence "a plugin that fails here ..."."""

    STOP_START = "stops the start with one line and exit code 2"
    REFUSE_REQUEST = "refuses the request with 500, code plugin_failed; the plugin is called again for the next request"
    FAIL_REQUESTS = "fails the requests of the call with 500; the plugin is called again"
    LEAVE_OUT = "is left out of the rest of the request, which continues"
    SWITCH_OFF = "is switched off until its engine starts again"
    COUNT = "is counted, and called again"


_STOP: Final = FailurePolicy.STOP_START
_LEAVE_OUT: Final = FailurePolicy.LEAVE_OUT

HOOK_POLICIES: Final[Mapping[str, FailurePolicy]] = {
    "plugserve_options": _STOP,
    "plugserve_schedulers": _STOP,
    "plugserve_attention_backends": _STOP,
    "plugserve_prefix_caches": _STOP,
    "plugserve_draft_proposers": _STOP,
    "plugserve_lora_managers": _STOP,
    "plugserve_model_runners": _STOP,
    "plugserve_executors": _STOP,
    "plugserve_architectures": _STOP,
    "plugserve_weight_formats": _STOP,
    "plugserve_tool_parsers": _STOP,
    "plugserve_reasoning_parsers": _STOP,
    "plugserve_configure": _STOP,
    "plugserve_metrics": _STOP,
    "plugserve_register_routes": _STOP,
    "plugserve_engine_started": FailurePolicy.COUNT,
    "plugserve_engine_stopping": FailurePolicy.COUNT,
    "plugserve_authorize": FailurePolicy.REFUSE_REQUEST,
    "plugserve_request_received": _LEAVE_OUT,
    "plugserve_sampling_params": FailurePolicy.REFUSE_REQUEST,
    "plugserve_request_finished": _LEAVE_OUT,
    "plugserve_error": _LEAVE_OUT,
    "plugserve_request_ended": FailurePolicy.COUNT,
}

STRATEGY_POLICIES: Final[Mapping[str, FailurePolicy]] = {
    "factory": _STOP,
    "scheduler": FailurePolicy.FAIL_REQUESTS,
    "model runner": FailurePolicy.FAIL_REQUESTS,
    "LoRA manager": FailurePolicy.FAIL_REQUESTS,
    "prefix cache": FailurePolicy.SWITCH_OFF,
    "draft proposer": FailurePolicy.SWITCH_OFF,
    "tool parser": _LEAVE_OUT,
    "reasoning parser": _LEAVE_OUT,
}
"""Calls of the objects that factories make, and of the factories themselves. A draft proposer is switched off after
three failures in a row; three of a model runner in a row end its engine, which the supervisor starts again."""


def is_shutdown(error: BaseException) -> bool:
    """True for an exception that ends this task or process, which must be re-raised.

    CancelledError, where this task is being cancelled; KeyboardInterrupt, where Ctrl-C raises it (engines and server
    workers ignore Ctrl-C: there it is the plugin's own); GeneratorExit, by which Python closes a coroutine.
    """
    if isinstance(error, asyncio.CancelledError):
        return _is_being_cancelled()
    if isinstance(error, KeyboardInterrupt):
        return signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    return isinstance(error, GeneratorExit)


def _is_being_cancelled() -> bool:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop in this thread
        return False
    return task is not None and task.cancelling() > 0
