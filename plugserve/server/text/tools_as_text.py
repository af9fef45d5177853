"""Tools for models whose chat template has no place for them: as text in the messages, earlier calls and results too.

The model is asked to write what the generic-json parser reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

_INTRODUCTION: Final = "You can call functions. These are the functions, with their parameters as JSON schemas:"
_HOW: Final = (
    'To call functions, answer with nothing but a JSON list: [{"name": "...", "arguments": {...}}]. '
    "Use the results to answer the user."
)
_MAY: Final = "Answer in words where no function is needed."


def messages_with_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], choice: Any
) -> list[dict[str, Any]]:
    """messages in plain roles, the tools in the system message. choice is the request's tool_choice."""
    plain = [_plain(message) for message in messages]
    if not tools:
        return plain
    text = _instructions(tools, choice)
    if plain and plain[0].get("role") == "system":
        plain[0]["content"] = f"{plain[0].get('content') or ''}\n\n{text}"
        return plain
    return [{"role": "system", "content": text}, *plain]


def _instructions(tools: Sequence[Mapping[str, Any]], choice: Any) -> str:
    functions = [tool["function"] for tool in tools if isinstance(tool.get("function"), Mapping)]
    lines = [_INTRODUCTION, *(json.dumps(function, ensure_ascii=False) for function in functions)]
    if isinstance(choice, Mapping) and isinstance(choice.get("function"), Mapping):
        name = choice["function"].get("name")
        lines.append(f"Call {name} now: answer with nothing but its arguments as a JSON object.")
    else:
        lines += [_HOW] if choice == "required" else [_HOW, _MAY]
    return "\n".join(lines)


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """A call as the assistant's text, a result as the user's."""
    if message.get("role") == "tool":
        return {"role": "user", "content": f"Result of the call: {message.get('content') or ''}"}
    calls = message.get("tool_calls")
    if not calls:
        return dict(message)
    functions = [call["function"] for call in calls]
    text = json.dumps(
        [{"name": function["name"], "arguments": function.get("arguments") or {}} for function in functions],
        ensure_ascii=False,
    )
    plain = {name: value for name, value in message.items() if name != "tool_calls"}
    return {**plain, "content": f"{message.get('content') or ''}\n{text}".strip()}
