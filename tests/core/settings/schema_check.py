"""Checks a value against a JSON schema, for the keywords that settings_schema uses; any other keyword is an error."""

from __future__ import annotations

import re
from typing import Any

_TYPES = {"object": dict, "array": list, "string": str, "null": type(None), "boolean": bool}
_NOTES = {"$schema", "$defs", "title", "description", "default", "deprecated", "format", "examples"}


def errors(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None, path: str = "") -> list[str]:
    """Why value isn't what schema describes; empty if it is."""
    root = schema if root is None else root
    found: list[str] = []
    for keyword, content in schema.items():
        if keyword not in _NOTES:
            found += _CHECKS[keyword](value, content, schema, root, path)
    return found


def _unless(holds: bool, path: str, why: str) -> list[str]:
    return [] if holds else [f"{path}: {why}"]


def _has_type(value: Any, name: str) -> bool:
    if name in ("integer", "number"):
        return isinstance(value, int if name == "integer" else int | float) and not isinstance(value, bool)
    return isinstance(value, _TYPES[name])


def _type(value, names, schema, root, path):
    names = [names] if isinstance(names, str) else names
    return _unless(any(_has_type(value, name) for name in names), path, f"{value!r} is no {names}")


def _enum(value, entries, schema, root, path):
    is_one = any(value == one and type(value) is type(one) for one in entries)
    return _unless(is_one, path, f"{value!r} not in {entries}")


def _any_of(value, parts, schema, root, path):
    return _unless(any(not errors(value, part, root, path) for part in parts), path, f"{value!r} is none of {parts}")


def _number(compare):
    def check(value, bound, schema, root, path):
        return _unless(not _has_type(value, "number") or compare(value, bound), path, f"{value!r} against {bound}")

    return check


def _text(test):
    def check(value, content, schema, root, path):
        return _unless(not isinstance(value, str) or test(value, content), path, f"{value!r} against {content}")

    return check


def _ref(value, target, schema, root, path):
    found: Any = root
    for key in target.removeprefix("#/").split("/"):
        found = found[key]
    return errors(value, found, root, path)


def _properties(value, properties, schema, root, path):
    if not isinstance(value, dict):
        return []
    return [why for key in value.keys() & properties.keys() for why in errors(value[key], properties[key], root, key)]


def _patterns(value, patterns, schema, root, path):
    if not isinstance(value, dict):
        return []
    return [
        why
        for key in value
        for pattern, inner in patterns.items()
        if re.search(pattern, key)
        for why in errors(value[key], inner, root, key)
    ]


def _additional(value, content, schema, root, path):
    if not isinstance(value, dict):
        return []
    patterns = schema.get("patternProperties", {})
    rest = [key for key in value if key not in schema.get("properties", {})]
    rest = [key for key in rest if not any(re.search(pattern, key) for pattern in patterns)]
    if content is False:
        return [f"{path}: unknown key {key!r}" for key in rest]
    return [] if content is True else [why for key in rest for why in errors(value[key], content, root, key)]


def _items(value, content, schema, root, path):
    return [why for entry in value for why in errors(entry, content, root, path)] if isinstance(value, list) else []


_CHECKS = {
    "type": _type,
    "enum": _enum,
    "const": lambda value, content, *more: _enum(value, [content], *more),
    "anyOf": _any_of,
    "minimum": _number(lambda value, bound: value >= bound),
    "maximum": _number(lambda value, bound: value <= bound),
    "exclusiveMinimum": _number(lambda value, bound: value > bound),
    "pattern": _text(lambda value, pattern: re.search(pattern, value) is not None),
    "minLength": _text(lambda value, length: len(value) >= length),
    "maxLength": _text(lambda value, length: len(value) <= length),
    "$ref": _ref,
    "properties": _properties,
    "patternProperties": _patterns,
    "additionalProperties": _additional,
    "items": _items,
    "minItems": lambda value, count, schema, root, path: _unless(len(value) >= count, path, f"{value!r} is too short"),
    "maxItems": lambda value, count, schema, root, path: _unless(len(value) <= count, path, f"{value!r} is too long"),
    "propertyNames": lambda value, content, schema, root, path: [
        why for key in value for why in errors(key, content, root, path)
    ],
}
