"""Makes a tool plan and one grammar of a body's tools, response_format and structured_outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import orjson

from plugserve.core.errors import RequestError
from plugserve.server.api.json_body import shown
from plugserve.server.api.tool_fields import plan_tools
from plugserve.server.text.grammars import GrammarSource
from plugserve.server.text.tool_plan import ToolPlan

_KINDS: Final = ("json", "regex", "choice", "grammar", "json_object")
_FORMATS: Final = ("text", "json_object", "json_schema")
_MAX_CHOICES: Final = 1024
_ANY_OBJECT: Final = {"type": "object"}


def answer_rules(
    tools: Any,
    tool_choice: Any,
    parallel_tool_calls: bool | None,
    response_format: Any,
    *,
    structured_outputs: Any = None,
    format_field: str = "",
) -> tuple[ToolPlan | None, GrammarSource | None]:
    """A chat's tools and the grammar of its answer; forced calls have a grammar of their own. format_field: the API's
    name of response_format. Raises RequestError (400)."""
    plan = plan_tools(tools, tool_choice, parallel_tool_calls)
    wanted = wanted_grammar(response_format, structured_outputs)
    if plan is not None and not plan.is_auto:
        return plan, plan.grammar
    if wanted is not None and format_field and wanted.field.startswith("response_format"):
        wanted = replace(wanted, field=format_field)
    return plan, wanted


def wanted_grammar(response_format: Any, structured_outputs: Any = None) -> GrammarSource | None:
    """None for free text. Raises RequestError (400) that names the field."""
    of_format = _response_format(response_format)
    of_outputs = _structured_outputs(structured_outputs)
    if of_format is not None and of_outputs is not None:
        raise _bad("structured_outputs", "can't be combined with response_format; send one of them")
    return of_format if of_format is not None else of_outputs


def _response_format(value: Any) -> GrammarSource | None:
    if value is None:
        return None
    _check_object("response_format", value)
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return GrammarSource("json", _ANY_OBJECT, "response_format")
    if kind == "json_schema":
        return _json_schema(value.get("json_schema"))
    raise _bad("response_format.type", f"must be one of {', '.join(_FORMATS)}, got {shown(kind)}")


def _json_schema(value: Any) -> GrammarSource:
    path = "response_format.json_schema"
    _check_object(path, value)
    if not isinstance(value.get("name", ""), str):
        raise _bad(f"{path}.name", f"must be a string, got {shown(value['name'])}")
    if not isinstance(value.get("strict"), bool | None):
        raise _bad(f"{path}.strict", f"must be true or false, got {shown(value['strict'])}")
    schema = value.get("schema")
    _check_object(f"{path}.schema", schema)
    return GrammarSource("json", schema, f"{path}.schema")


def _structured_outputs(value: Any) -> GrammarSource | None:
    if value is None:
        return None
    _check_object("structured_outputs", value)
    given = [name for name, entry in value.items() if entry is not None]
    unknown = next((name for name in given if name not in _KINDS), None)
    if unknown is not None:
        raise _bad(f"structured_outputs.{unknown}", f"not supported; one of {', '.join(_KINDS)} is")
    if len(given) != 1:
        got = ", ".join(given) or "none of them"
        raise _bad("structured_outputs", f"needs exactly one of {', '.join(_KINDS)}, got {got}")
    return _CHECKS[given[0]](value[given[0]], f"structured_outputs.{given[0]}")


def _of_json(value: Any, path: str) -> GrammarSource:
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise _bad(path, f"is not valid JSON: {error}") from None
    _check_object(path, value)
    return GrammarSource("json", value, path)


def _of_text(value: Any, path: str) -> GrammarSource:
    if not isinstance(value, str) or not value:
        raise _bad(path, f"must be a non-empty string, got {shown(value)}")
    return GrammarSource("regex" if path.endswith(".regex") else "grammar", value, path)


def _of_choice(value: Any, path: str) -> GrammarSource:
    if isinstance(value, list) and len(value) > _MAX_CHOICES:
        raise _bad(path, f"at most {_MAX_CHOICES} choices are allowed, got {len(value)}")
    if not isinstance(value, list) or not value or not all(isinstance(choice, str) and choice for choice in value):
        raise _bad(path, f"must be a list of non-empty strings, got {shown(value)}")
    return GrammarSource("choice", value, path)


def _of_object(value: Any, path: str) -> GrammarSource:
    if value is not True:
        raise _bad(path, f"must be true, got {shown(value)}")
    return GrammarSource("json", _ANY_OBJECT, path)


_CHECKS: Final = {
    "json": _of_json,
    "regex": _of_text,
    "choice": _of_choice,
    "grammar": _of_text,
    "json_object": _of_object,
}


def _check_object(path: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise _bad(path, f"must be an object, got {shown(value)}")


def _bad(path: str, message: str) -> RequestError:
    return RequestError(f"{path}: {message}", param=path.partition(".")[0])
