"""How models write tool calls: hermes (also Qwen), llama3-json, mistral, pythonic, generic-json.

A stream's text is let through until something begins that may be a call; from there on it is held until the end and
read at once, so that a stream and the whole text give the same however it is cut.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from plugserve.core.contracts import ToolCall, ToolParser
from plugserve.core.hookspecs import hookimpl

_MAX_PYTHON = 64 * 1024


class WrittenCalls:
    """One answer. opener: where a call may begin in a text; read: all calls of the text from there, None for none.
    longest: characters of the longest opener that may still be incomplete at the end of a text."""

    def __init__(self, opener: re.Pattern[str], read: Callable[[str], list[ToolCall] | None], longest: int) -> None:
        self._opener = opener
        self._read = read
        self._longest = longest
        self._text = ""
        self._num_shown = 0

    def feed(self, text: str) -> str:
        self._text += text
        return self._shown_until(self._safe_end())

    def finish(self) -> tuple[str, list[ToolCall]]:
        found = self._opener.search(self._text)
        calls = self._read(self._text[found.start() :]) if found else None
        if found is None or not calls:
            return self._shown_until(len(self._text)), []
        return self._shown_until(len(self._text[: found.start()].rstrip())), calls

    def _safe_end(self) -> int:
        """White space before a call isn't content, so that at the end waits too."""
        found = self._opener.search(self._text)
        if found is not None:
            end = found.start()
        else:
            tail = max(0, len(self._text) - self._longest + 1)
            end = next((at for at in range(tail, len(self._text)) if self._text[at] in "<[{`("), len(self._text))
            if not self._text.strip():
                return 0
        return len(self._text[:end].rstrip())

    def _shown_until(self, end: int) -> str:
        shown = self._text[self._num_shown : end]
        self._num_shown = max(self._num_shown, end)
        return shown


def _call(value: Any) -> ToolCall | None:
    """A call from {"name": ..., "arguments" or "parameters": ...}."""
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    if arguments is not None and not isinstance(arguments, Mapping):
        return None
    if "arguments" not in value and "parameters" not in value:
        return None
    return ToolCall(value["name"], json.dumps(arguments or {}, ensure_ascii=False))


def _calls(text: str) -> list[ToolCall] | None:
    """JSON objects or lists of them, one after another; None when anything else stands there."""
    decoder, found, at = json.JSONDecoder(), list[ToolCall](), 0
    while at < len(text):
        if text[at] in " \t\r\n;,":
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return None
        for entry in value if isinstance(value, list) else [value]:
            call = _call(entry)
            if call is None:
                return None
            found.append(call)
    return found


def _read_hermes(text: str) -> list[ToolCall] | None:
    found: list[ToolCall] = []
    for body in re.findall(r"<tool_call>(.*?)(?:</tool_call>|\Z)", text, re.DOTALL):
        found += _calls(body) or []
    return found


def _read_mistral(text: str) -> list[ToolCall] | None:
    body = text.removeprefix("[TOOL_CALLS]")
    calls = _calls(body)
    if calls:
        return calls
    found: list[ToolCall] = []
    for part in filter(str.strip, text.split("[TOOL_CALLS]")):
        named = re.match(r"\s*([\w.-]+)(?:\[ARGS\])?\s*(\{.*)", part, re.DOTALL)
        try:
            arguments = json.loads(named[2]) if named else None
        except (ValueError, RecursionError):
            return None
        if named is None or not isinstance(arguments, dict):
            return None
        found.append(ToolCall(named[1], json.dumps(arguments, ensure_ascii=False)))
    return found


def _read_json(text: str) -> list[ToolCall] | None:
    text = text.strip().removeprefix("<|python_tag|>").strip()
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text, re.DOTALL)
    return _calls(fenced[1] if fenced else text)


def _read_python(text: str) -> list[ToolCall] | None:
    if len(text) > _MAX_PYTHON:
        return None
    try:
        body = ast.parse(text.strip(), mode="eval").body
        nodes = body.elts if isinstance(body, ast.List) else []
        return [_python_call(node) for node in nodes]
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def _python_call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a call with named arguments")
    arguments = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords if word.arg is not None}
    return ToolCall(ast.unparse(node.func), json.dumps(arguments, ensure_ascii=False))


def hermes() -> ToolParser:
    return WrittenCalls(re.compile("<tool_call>"), _read_hermes, len("<tool_call>"))


def llama3_json() -> ToolParser:
    return WrittenCalls(re.compile(r"\A\s*(?:<\|python_tag\|>|\{)"), _read_json, len("<|python_tag|>"))


def mistral() -> ToolParser:
    return WrittenCalls(re.compile(r"\[TOOL_CALLS\]"), _read_mistral, len("[TOOL_CALLS]"))


def pythonic() -> ToolParser:
    return WrittenCalls(re.compile(r"\A\s*\["), _read_python, 1)


def generic_json() -> ToolParser:
    return WrittenCalls(re.compile(r"\A\s*(?:[\[{]|```)"), _read_json, 3)


@hookimpl
def plugserve_tool_parsers() -> Mapping[str, Callable[[], ToolParser]]:
    return {
        "hermes": hermes,
        "qwen": hermes,
        "llama3-json": llama3_json,
        "mistral": mistral,
        "pythonic": pythonic,
        "generic-json": generic_json,
    }
