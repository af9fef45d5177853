"""The field keep_alive of bodies: how long a model stays loaded after the request, as Ollama's clients write it."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, WithJsonSchema

from plugserve.server.api.json_body import shown

_PARTS: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_MOST_CHARACTERS: Final = 32


def read_keep_alive(value: Any) -> float | None:
    """Seconds from a number (of seconds) or a text such as "5m", "1h30m" or "-1"; negative ones are for ever."""
    if value is None:
        return None
    if isinstance(value, str):
        seconds = _seconds(value.strip())
    else:
        seconds = value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
        raise ValueError(
            f'must be seconds, or a duration such as "5m"; 0 unloads at once, -1 keeps it; got {shown(value)}'
        )
    return -1.0 if seconds < 0 else float(seconds)


def _seconds(text: str) -> Any:
    negative, digits = text.startswith("-"), text.removeprefix("-")
    parts = _PARTS.findall(digits) if len(text) <= _MOST_CHARACTERS else []
    if parts and "".join(number + unit for number, unit in parts) == digits:
        total = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
        return -total if negative else total
    try:
        return float(text) if len(text) <= _MOST_CHARACTERS else text
    except ValueError:
        return text


KeepAlive = Annotated[
    float | None,
    BeforeValidator(read_keep_alive),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}, {"type": "null"}]}),
]
