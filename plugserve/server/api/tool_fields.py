"""Checks tools and tool_choice of a chat body and makes a tool plan of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from plugserve.core.errors import RequestError
from plugserve.server.api.json_body import shown
from plugserve.server.text.tool_plan import ToolPlan

MAX_CALLS: Final = 16
MAX_TOOLS: Final = 128
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def plan_tools(tools: Any, choice: Any, parallel: bool | None) -> ToolPlan | None:
    """None where no tool can be called. Raises RequestError (400) that names the field."""
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        tools, choice = _allowed(tools, choice.get("allowed_tools"))
    named = _named(choice)
    if not tools:
        if named is not None or choice == "required":
            raise _bad("tool_choice", f"{shown(choice)} needs tools; send some")
        return None
    if choice == "none":
        return None
    names = _check_tools(tools)
    if named is not None and named not in names:
        raise _bad("tool_choice", f"no tool is named {shown(named)}; the tools are {', '.join(names[:20])}")
    is_auto = named is None and choice != "required"
    return ToolPlan(tools, named, 1 if parallel is False else MAX_CALLS, is_auto)


def _allowed(tools: Any, allowed: Any) -> tuple[Any, Any]:
    """The tools that may be called, and the choice among them; the prompt shows all tools."""
    named = allowed.get("tools") if isinstance(allowed, Mapping) else None
    mode = allowed.get("mode") if isinstance(allowed, Mapping) else None
    if mode not in ("auto", "required"):
        raise _bad("tool_choice", f"allowed_tools.mode must be auto or required, got {shown(mode)}")
    if not isinstance(named, list) or not named:
        raise _bad("tool_choice", f"allowed_tools.tools must be a list of tools, got {shown(named)}")
    names = [_named(tool) for tool in named]
    known = _check_tools(tools or [])
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise _bad("tool_choice", f"no tool is named {shown(unknown)}; the tools are {', '.join(known[:20])}")
    return [tool for tool in tools if tool["function"]["name"] in names], mode


def _named(choice: Any) -> str | None:
    if choice in (None, "none", "auto", "required"):
        return None
    function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise _bad("tool_choice", f"must be none, auto, required or a named function, got {shown(choice)}")
    return name


def _check_tools(tools: Any) -> list[str]:
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        raise _bad("tools", f"must be a list of at most {MAX_TOOLS} tools, got {shown(tools)}")
    names: list[str] = []
    for index, tool in enumerate(tools):
        path = f"tools.{index}"
        if not isinstance(tool, Mapping) or tool.get("type") != "function":
            raise _bad(f"{path}.type", f"must be 'function', got {shown(tool)}")
        function = tool.get("function")
        if not isinstance(function, Mapping):
            raise _bad(f"{path}.function", f"must be an object, got {shown(function)}")
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise _bad(f"{path}.function.name", f"must be 1 to 64 of a-z, A-Z, 0-9, _, - and ., got {shown(name)}")
        if name in names:
            raise _bad(f"{path}.function.name", f"{shown(name)} is used twice")
        if not isinstance(function.get("parameters"), Mapping | None):
            raise _bad(f"{path}.function.parameters", "must be a JSON schema (an object)")
        if not isinstance(function.get("strict"), bool | None):
            raise _bad(f"{path}.function.strict", f"must be true or false, got {shown(function['strict'])}")
        names.append(name)
    return names


def _bad(path: str, message: str) -> RequestError:
    return RequestError(f"{path}: {message}", param=path.partition(".")[0])
