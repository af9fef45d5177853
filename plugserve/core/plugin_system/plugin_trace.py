"""PLUGSERVE_TRACE_PLUGINS=1: one line for every hook call, with its implementation, arguments and result.

Lines go to standard error and contain no API keys.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final

from plugserve.core.contracts.settings_view import SettingsView
from plugserve.core.settings.log_setup import escape_controls

VARIABLE: Final = "PLUGSERVE_TRACE_PLUGINS"
_SECRET_HEADERS: Final = frozenset({"authorization", "x-api-key", "cookie", "proxy-authorization"})
_MOST: Final = 2000  # characters of one value


def is_tracing() -> bool:
    return os.environ.get(VARIABLE) == "1"


def trace_call(plugin: str, hook: str, given: Mapping[str, Any], outcome: str) -> None:
    """Print one call. outcome describes its result or exception; see returned and raised."""
    arguments = ", ".join(f"{name}={_shown(value)}" for name, value in given.items())
    print(escape_controls(f"plugserve-trace {plugin}: {hook}({arguments}) {outcome}"), file=sys.stderr)


def returned(result: Any) -> str:
    return f"-> {_shown(result)}"


def raised(error: BaseException) -> str:
    return f"raised {_shown(error)}"


def _shown(value: Any) -> str:
    """repr, in one line, shortened, without API keys."""
    if is_dataclass(value) and not isinstance(value, (type, SettingsView)):
        parts = ", ".join(f"{field.name}={_field(field.name, getattr(value, field.name))}" for field in fields(value))
        text = f"{type(value).__name__}({parts})"
    else:
        text = repr(value)
    text = " ".join(text.split("\n"))
    return text if len(text) <= _MOST else f"{text[:_MOST]}... ({len(text)} characters)"


def _field(name: str, value: Any) -> str:
    if name == "headers" and isinstance(value, Mapping):
        return repr({key: "***" if key.lower() in _SECRET_HEADERS else one for key, one in value.items()})
    return repr(value)
