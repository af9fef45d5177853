"""Converts Anthropic's messages, which consist of blocks, to chat messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from plugserve.core.errors import RequestError
from plugserve.server.api.json_body import shown


def chat_messages(messages: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
    """Messages as (role, content). A user's tool results become separate messages, before the user's text. Raises
    RequestError (400) that names the block."""
    found: list[dict[str, Any]] = []
    for index, (role, content) in enumerate(messages):
        path = f"messages.{index}"
        if role not in ("user", "assistant", "system"):
            raise RequestError(f"{path}.role: must be user or assistant, got {shown(role)}", param="messages")
        if isinstance(content, str):
            found.append({"role": role, "content": content})
        elif role == "assistant":
            found.append(_assistant_message(_blocks(content, f"{path}.content")))
        else:
            found += _user_messages(role, _blocks(content, f"{path}.content"))
    return found


def text_of(content: Any, path: str) -> str:
    """A string, or the text of text blocks, which belong together without anything between them."""
    if isinstance(content, str):
        return content
    return "".join(_text(block, block_path) for block_path, block in _blocks(content, path))


Block = tuple[str, Mapping[str, Any]]
"""(path, block)."""


def _blocks(content: Any, path: str) -> list[Block]:
    if not isinstance(content, list):
        raise _bad(path, f"must be a string or a list of blocks, got {type(content).__name__}")
    for index, block in enumerate(content):
        if not isinstance(block, Mapping):
            raise _bad(f"{path}.{index}", f"must be an object with a type, got {type(block).__name__}")
    return [(f"{path}.{index}", block) for index, block in enumerate(content)]


def _user_messages(role: str, blocks: Iterable[Block]) -> list[dict[str, Any]]:
    results = [_tool_message(block, path) for path, block in blocks if block.get("type") == "tool_result"]
    texts = [_text(block, path) for path, block in blocks if block.get("type") != "tool_result"]
    said = [{"role": role, "content": "".join(texts)}] if texts or not results else []
    return results + said


def _tool_message(block: Mapping[str, Any], path: str) -> dict[str, Any]:
    id = block.get("tool_use_id")
    if not isinstance(id, str):
        raise _bad(f"{path}.tool_use_id", f"must be a string, got {type(id).__name__}")
    content = block.get("content")
    text = "" if content is None else text_of(content, f"{path}.content")
    return {"role": "tool", "tool_call_id": id, "content": f"Error: {text}" if block.get("is_error") else text}


def _assistant_message(blocks: Iterable[Block]) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for path, block in blocks:
        kind = block.get("type")
        if kind == "tool_use":
            calls.append(_call(block, path))
        elif kind == "thinking":
            thoughts.append(_string(block, "thinking", path))
        elif kind != "redacted_thinking":  # which only Anthropic can read
            texts.append(_text(block, path))
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _call(block: Mapping[str, Any], path: str) -> dict[str, Any]:
    arguments = block.get("input")
    if not isinstance(arguments, Mapping):
        raise _bad(f"{path}.input", f"must be an object, got {type(arguments).__name__}")
    return {
        "id": _string(block, "id", path),
        "type": "function",
        "function": {"name": _string(block, "name", path), "arguments": orjson.dumps(arguments).decode()},
    }


def _text(block: Mapping[str, Any], path: str) -> str:
    if block.get("type") != "text":
        raise _bad(f"{path}.type", f"blocks of type {shown(block.get('type'))} are not supported here; send text")
    return _string(block, "text", path)


def _string(block: Mapping[str, Any], name: str, path: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise _bad(f"{path}.{name}", f"must be a string, got {type(value).__name__}")
    return value


def _bad(path: str, message: str) -> RequestError:
    return RequestError(f"{path}: {message}", param=path.partition(".")[0])
