"""Tool calls as XML with one element per parameter, as several coding models write them:

    <function=get_weather>
    <parameter=city>
    Paris
    </parameter>
    <parameter=days>3</parameter>
    </function>

Values are strings; a parameter whose schema says number, integer, boolean, object, array or null is parsed as JSON. A
call is returned when it is complete, and text as soon as it can't be part of a call. Malformed calls are content.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from plugserve import AnswerDelta, ToolCallDelta

OPENING, CLOSING = "<function=", "</function>"
_HEAD = re.compile(r"<function=([^<>\s]+)>")
_PARAMETER = re.compile(r"\s*<parameter=([^<>\s]+)>(.*?)</parameter>", re.DOTALL)
_JSON_TYPES = frozenset({"number", "integer", "boolean", "object", "array", "null"})


class XmlToolParser:
    """A plugserve.ToolParser for one answer to a request with tools."""

    special_tokens: Collection[str] = ()

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        self._schemas = {name: schema for name, schema in map(_named_schema, tools) if name}
        self._held = ""  # text from a possible start of a call on
        self._searched = 0  # characters of it in which no closing mark begins
        self._num_calls = 0

    def feed(self, text: str) -> AnswerDelta:
        self._held += text
        content: list[str] = []
        calls: list[ToolCallDelta] = []
        while self._starts_with_opening(content):
            end = self._held.find(CLOSING, self._searched)
            if end < 0:
                self._searched = max(0, len(self._held) - len(CLOSING) + 1)
                break
            call = self._read(self._held[:end])
            if call is None:
                content.append(OPENING)  # not a call, so it is content; the rest may hold a call
                self._held = self._held.removeprefix(OPENING)
            else:
                calls.append(call)
                self._held = self._held[end + len(CLOSING) :]
            self._searched = 0
        return AnswerDelta("".join(content), calls)

    def finish(self) -> AnswerDelta:
        held, self._held = self._held, ""
        return AnswerDelta(held)

    def _starts_with_opening(self, content: list[str]) -> bool:
        """Moves the text before a possible opening mark to content. True if the held text starts with the mark."""
        at = self._held.find(OPENING)
        if at < 0:
            at = len(self._held) - _num_begun(self._held)
        content.append(self._held[:at])
        self._held = self._held[at:]
        return self._held.startswith(OPENING)

    def _read(self, written: str) -> ToolCallDelta | None:
        """The call, or None if written isn't one."""
        head = _HEAD.match(written)
        if head is None:
            return None
        types, arguments, at = self._schemas.get(head[1], {}), {}, head.end()
        while found := _PARAMETER.match(written, at):
            arguments[found[1]] = _value(found[2], types.get(found[1]))
            at = found.end()
        if written[at:].strip():
            return None
        self._num_calls += 1
        return ToolCallDelta(self._num_calls - 1, json.dumps(arguments, ensure_ascii=False), head[1])


def _named_schema(tool: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A tool's name, and its parameters' types by name; {} if its schema declares none."""
    function = tool.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return "", {}
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    if not isinstance(properties, Mapping):
        return function["name"], {}
    return function["name"], {key: one.get("type") for key, one in properties.items() if isinstance(one, Mapping)}


def _value(text: str, kind: Any) -> Any:
    """A parameter's value: text without the line breaks of its element, or parsed JSON if the schema requires it."""
    text = text.removeprefix("\n").removesuffix("\n")
    kinds = kind if isinstance(kind, list) else [kind]
    if "string" in kinds or not any(isinstance(one, str) and one in _JSON_TYPES for one in kinds):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _num_begun(text: str) -> int:
    """The number of characters at the end of text that may start an opening mark."""
    return next((size for size in range(len(OPENING) - 1, 0, -1) if text.endswith(OPENING[:size])), 0)
