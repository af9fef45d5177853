"""Input items of the Responses API become a chat's messages, and output items a message of a later request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from plugserve.core.errors import RequestError
from plugserve.server.api.json_body import shown

_ROLES: Final = ("user", "assistant", "system", "developer")


def input_messages(input: Any) -> list[dict[str, Any]]:
    """Chat messages of an input: a string is a user message. Consecutive reasoning, text and calls of an assistant
    become one message. Raises RequestError (400)."""
    if input is None:
        raise RequestError("input: this field is required.", code="missing", param="input")
    if isinstance(input, str):
        return [{"role": "user", "content": input}]
    if not isinstance(input, list) or not input:
        raise _bad("input", "must be a string or a list of items that is not empty")
    messages: list[dict[str, Any]] = []
    for index, item in enumerate(input):
        if not isinstance(item, Mapping):
            raise _bad(f"input.{index}", f"must be an object, got {type(item).__name__}")
        _add(messages, item, f"input.{index}")
    return messages


def _add(messages: list[dict[str, Any]], item: Mapping[str, Any], path: str) -> None:
    match item.get("type", "message"):
        case "message":
            message = _message(item, path)
            if message["role"] == "assistant" and _is_open(messages, "content"):
                messages[-1]["content"] = message["content"]
            else:
                messages.append(message)
        case "reasoning":
            if not _is_open(messages, "reasoning_content"):
                messages.append({"role": "assistant", "content": ""})
            messages[-1]["reasoning_content"] = _thought(item, path)
        case "function_call":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            messages[-1].setdefault("tool_calls", []).append(_call(item, path))
        case "function_call_output":
            output = _string_or_parts(item.get("output"), f"{path}.output")
            id = _string(item, "call_id", path)
            messages.append({"role": "tool", "tool_call_id": id, "content": output})
        case kind:
            fix = "send messages, reasoning, function calls and their outputs"
            raise _bad(f"{path}.type", f"items of type {shown(kind)} are not supported; {fix}")


def _is_open(messages: list[dict[str, Any]], name: str) -> bool:
    """The last message is the assistant's and goes on with this part: thinking comes before words, words before
    calls."""
    last = messages[-1] if messages else {"role": ""}
    if last["role"] != "assistant" or "tool_calls" in last or last["content"]:
        return False
    return name == "content" or "reasoning_content" not in last


def _message(item: Mapping[str, Any], path: str) -> dict[str, Any]:
    role = item.get("role")
    if role not in _ROLES:
        raise _bad(f"{path}.role", f"must be user, assistant, system or developer, got {shown(role)}")
    return {"role": role, "content": _string_or_parts(item.get("content"), f"{path}.content")}


def _thought(item: Mapping[str, Any], path: str) -> str:
    """The text of a reasoning item, else its summary."""
    for name in ("content", "summary"):
        parts = item.get(name)
        if not isinstance(parts, list | None):
            raise _bad(f"{path}.{name}", f"must be a list of parts, got {type(parts).__name__}")
        if parts:
            return "\n".join(_part_text(part, f"{path}.{name}.{index}") for index, part in enumerate(parts))
    return ""


def _call(item: Mapping[str, Any], path: str) -> dict[str, Any]:
    function = {"name": _string(item, "name", path), "arguments": _string(item, "arguments", path)}
    return {"id": _string(item, "call_id", path), "type": "function", "function": function}


def _string_or_parts(content: Any, path: str) -> str:
    if isinstance(content, list):
        content = "\n".join(_part_text(part, f"{path}.{index}") for index, part in enumerate(content))
    if not isinstance(content, str):
        raise _bad(path, f"must be a string or a list of parts, got {type(content).__name__}")
    return content


def _part_text(part: Any, path: str) -> str:
    if not isinstance(part, Mapping):
        raise _bad(path, f"must be an object with a type, got {type(part).__name__}")
    if part.get("type") not in ("input_text", "output_text", "text", "reasoning_text", "summary_text"):
        raise _bad(f"{path}.type", f"parts of type {shown(part.get('type'))} are not supported; send input_text")
    return _string(part, "text", path)


def _string(item: Mapping[str, Any], name: str, path: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise _bad(f"{path}.{name}", f"must be a string, got {type(value).__name__}")
    return value


def _bad(path: str, message: str) -> RequestError:
    return RequestError(f"{path}: {message}", param="input")


def output_message(output: list[dict[str, Any]]) -> dict[str, Any]:
    """A response's output items as the chat message that a later response goes on from."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    for item in output:
        match item["type"]:
            case "reasoning":
                message["reasoning_content"] = item["content"][0]["text"]
            case "message":
                message["content"] += item["content"][0]["text"]
            case "function_call" if _is_object(item["arguments"]):
                message.setdefault("tool_calls", []).append(_call(item, "output"))
    return message


def _is_object(text: str) -> bool:
    """False for arguments that their limit cut off: no client can have answered that call."""
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False
