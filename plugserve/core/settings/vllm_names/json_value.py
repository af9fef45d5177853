"""Reads a setting whose value is a JSON object, also key by key (--NAME.KEY VALUE)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from plugserve.core.errors import ConfigError


def json_object(value: Any, place: str) -> dict[str, Any]:
    """A table of a file, or the JSON text of an object. Raises ConfigError."""
    found = value
    if isinstance(value, str):
        try:
            found = json.loads(value)
        except ValueError:
            found = None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ConfigError(f"{place} must be a JSON object, got {value!r}")
    return found


def with_entry(earlier: Any, path: Sequence[str], text: str, place: str) -> dict[str, Any]:
    """The object with the value of text, JSON or plain text, at path; a last key that ends with + appends to a list.
    Raises ConfigError where path leads through something that is no object."""
    table = json_object({} if earlier is None else earlier, place)
    key, *rest = path
    if rest:
        inner = table.get(key)
        if not isinstance(inner, dict | None):
            raise ConfigError(f"{place}: {key} is {inner!r} already, and has no keys")
        return table | {key: with_entry(inner, rest, text, place)}
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if key.endswith("+"):
        key = key[:-1]
        before = table.get(key, [])
        value = [*(before if isinstance(before, list) else [before]), value]
    return table | {key: value}
