"""Tools' JSON schemas, closed to undeclared properties. Every match of the closed schema matches the given one.

JSON Schema allows any further property unless a schema says otherwise; small models then generate new properties until
max_tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_COMBINING: Final = frozenset(
    {
        "$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas",
        "patternProperties", "propertyNames", "unevaluatedProperties", "additionalProperties",
    }
)  # fmt: skip
_SCHEMAS: Final = ("items", "additionalItems", "contains", "additionalProperties")
_LISTS: Final = ("anyOf", "oneOf", "prefixItems", "items")
_TABLES: Final = ("properties", "patternProperties", "$defs", "definitions")


def closed_parameters(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """The closed schema of a function's parameters; without declared parameters it allows none. Raises
    RecursionError."""
    schema: dict[str, Any] = {"type": "object", **(parameters or {})}
    if not _COMBINING & schema.keys():
        schema.setdefault("properties", {})
    return _closed(schema) if "allOf" not in _keys(schema) else schema


def _closed(schema: Any) -> Any:
    """schema with every object closed that declares its properties. Objects that several schemas describe together, or
    that must have more than is declared, stay as they are."""
    if not isinstance(schema, Mapping):
        return schema
    found = dict(schema)
    for name in _SCHEMAS:
        if isinstance(found.get(name), Mapping):
            found[name] = _closed(found[name])
    for name in _LISTS:
        if isinstance(found.get(name), list):
            found[name] = [_closed(entry) for entry in found[name]]
    for name in _TABLES:
        if isinstance(found.get(name), Mapping):
            found[name] = {key: _closed(entry) for key, entry in found[name].items()}
    if _may_close(found):
        found["additionalProperties"] = False
    return found


def _may_close(schema: Mapping[str, Any]) -> bool:
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or _COMBINING & schema.keys():
        return False
    required, least = schema.get("required", []), schema.get("minProperties", 0)
    are_declared = isinstance(required, list) and all(isinstance(name, str) and name in properties for name in required)
    return are_declared and isinstance(least, int | float) and least <= len(properties)


def _keys(value: Any) -> set[str]:
    """Every key in a schema, at any depth."""
    if isinstance(value, Mapping):
        return set(value) | {key for entry in value.values() for key in _keys(entry)}
    if isinstance(value, list):
        return {key for entry in value for key in _keys(entry)}
    return set()
