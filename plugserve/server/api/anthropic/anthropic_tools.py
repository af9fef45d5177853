"""Anthropic's tools and tool_choice in a chat's form, which api/tool_fields.py checks further."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plugserve.core.errors import RequestError
from plugserve.server.api.json_body import shown
from plugserve.server.api.tool_fields import MAX_TOOLS


def chat_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Raises RequestError (400), for tools of Anthropic's own too, which a server would have to run."""
    if tools is None:
        return None
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        raise _bad("tools", f"must be a list of at most {MAX_TOOLS} tools, got {shown(tools)}")
    return [_tool(tool, f"tools.{index}") for index, tool in enumerate(tools)]


def _tool(tool: Any, path: str) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        raise _bad(path, f"must be an object, got {shown(tool)}")
    if tool.get("type", "custom") != "custom":
        raise _bad(f"{path}.type", f"this server runs no tools of type {shown(tool['type'])}; send custom ones")
    schema = tool.get("input_schema")
    if not isinstance(schema, Mapping):
        raise _bad(f"{path}.input_schema", f"must be a JSON schema (an object), got {shown(schema)}")
    function = {"name": tool.get("name"), "parameters": schema}
    for name in ("description", "strict"):
        if tool.get(name) is not None:
            function[name] = tool[name]
    return {"type": "function", "function": function}


def chat_tool_choice(choice: Any, tools: Any) -> Any:
    """tool_choice of a chat. Raises RequestError (400)."""
    if choice is None:
        return None
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind not in ("auto", "any", "tool", "none"):
        raise _bad("tool_choice.type", f"must be auto, any, tool or none, got {shown(choice)}")
    if not tools and kind in ("any", "tool"):
        raise _bad("tool_choice", f"{kind!r} needs tools; send some")
    if kind != "tool":
        return {"auto": "auto", "any": "required", "none": "none"}[kind]
    name = choice.get("name")
    if not isinstance(name, str):
        raise _bad("tool_choice.name", f"must be a tool's name, got {shown(name)}")
    return {"type": "function", "function": {"name": name}}


def parallel_tool_calls(choice: Any) -> bool | None:
    """False where tool_choice allows one call only. Raises RequestError (400)."""
    alone = choice.get("disable_parallel_tool_use") if isinstance(choice, Mapping) else None
    if not isinstance(alone, bool | None):
        raise _bad("tool_choice.disable_parallel_tool_use", f"must be true or false, got {shown(alone)}")
    return False if alone else None


def _bad(path: str, message: str) -> RequestError:
    return RequestError(f"{path}: {message}", param=path.partition(".")[0])
