"""tools, tool_choice, text and reasoning of the Responses API in a chat's form, which api/answer_rules.py checks
further."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from plugserve.core.errors import RequestError
from plugserve.server.api.json_body import shown
from plugserve.server.api.tool_fields import MAX_TOOLS

_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_FORMATS: Final = ("text", "json_object", "json_schema")


def chat_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Raises RequestError (400), for tools of OpenAI's own too, which a server would have to run."""
    if tools is None:
        return None
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        raise _bad("tools", f"must be a list of at most {MAX_TOOLS} tools, got {shown(tools)}")
    return [_tool(tool, f"tools.{index}") for index, tool in enumerate(tools)]


def _tool(tool: Any, path: str) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        raise _bad(path, f"must be an object, got {shown(tool)}")
    if tool.get("type") != "function":
        raise _bad(f"{path}.type", f"this server runs no tools of type {shown(tool.get('type'))}; send functions")
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}}


def chat_tool_choice(choice: Any) -> Any:
    """Raises RequestError (400)."""
    if not isinstance(choice, Mapping):
        return choice
    if choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if choice.get("type") == "allowed_tools":
        tools = choice.get("tools")
        if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
            raise _bad("tool_choice.tools", f"must be a list of tools, got {shown(tools)}")
        named = [{"type": "function", "function": {"name": tool.get("name")}} for tool in tools]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": named}}
    raise _bad("tool_choice.type", f"must be function or allowed_tools, got {shown(choice.get('type'))}")


def response_format(text: Any) -> dict[str, Any] | None:
    """text.format as a chat's response_format; verbosity is accepted and has no effect. Raises RequestError (400)."""
    if text is None:
        return None
    if not isinstance(text, Mapping):
        raise _bad("text", f"must be an object, got {shown(text)}")
    format = text.get("format")
    if format is None:
        return None
    kind = format.get("type") if isinstance(format, Mapping) else None
    if kind not in _FORMATS:
        raise _bad("text.format.type", f"must be one of {', '.join(_FORMATS)}, got {shown(format)}")
    if kind != "json_schema":
        return {"type": kind}
    if not isinstance(format.get("schema"), Mapping):
        raise _bad("text.format.schema", f"must be an object, got {shown(format.get('schema'))}")
    for name, kinds in (("name", str), ("strict", bool)):
        if not isinstance(format.get(name), kinds | None):
            raise _bad(f"text.format.{name}", f"must be a {kinds.__name__}, got {shown(format[name])}")
    fields = {name: format[name] for name in ("name", "schema", "strict") if format.get(name) is not None}
    return {"type": "json_schema", "json_schema": fields}


def reasoning_effort(reasoning: Any) -> str | None:
    """Raises RequestError (400)."""
    if reasoning is None:
        return None
    if not isinstance(reasoning, Mapping):
        raise _bad("reasoning", f"must be an object, got {shown(reasoning)}")
    effort = reasoning.get("effort")
    if effort is not None and effort not in _EFFORTS:
        raise _bad("reasoning.effort", f"must be one of {', '.join(_EFFORTS)}, got {shown(effort)}")
    return effort


def _bad(path: str, message: str) -> RequestError:
    return RequestError(f"{path}: {message}", param=path.partition(".")[0])
