"""Mistral's way: [TOOL_CALLS] before a JSON list of calls, or before each name[ARGS]{...}."""

from __future__ import annotations

import re
from typing import Final

from plugserve.core.contracts.json_calls import JsonArguments, JsonCall
from plugserve.plugins.tool_parsers.calls_in_text import CallsInText, Notation, Reader

_OPENER: Final = "[TOOL_CALLS]"
_SPECIAL_TOKENS: Final = (_OPENER, "[ARGS]", "[CALL_ID]")
_NAME: Final = re.compile(r"([\w.-]{1,64})\s*(?:\[CALL_ID\][\w-]{0,64}\s*)?(?:\[ARGS\]\s*)?(?=\{)")
_NAME_BEGUN: Final = re.compile(r"[\w.-]{1,64}\s*(?:\[[A-Z_]{0,7}(?:\][\w-]{0,64}\s*(?:\[[A-Z]{0,4}\]?)?\s*)?)?")
_NAME_START: Final = re.compile(r"[\w.-]")


class _NamedArguments:
    """name[ARGS]{...}, also with [CALL_ID] and an id between them or without either."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.is_certain = False
        self._held = ""
        self._is_none = False
        self._arguments = JsonArguments()

    def push(self, text: str) -> tuple[str, str]:
        if self.is_certain:
            return self._arguments.push(text)
        text, self._held = self._held + text, ""
        named = _NAME.match(text)
        if named is not None:
            self.name, self.is_certain = named[1], True
            return self._arguments.push(text[named.end() :])
        if _NAME_BEGUN.fullmatch(text):
            self._held = text
            return "", ""
        self._is_none = True
        return "", text

    @property
    def is_complete(self) -> bool:
        return self._arguments.is_complete

    @property
    def is_broken(self) -> bool:
        return self._is_none or self._arguments.is_broken


def _reader(first: str) -> Reader | None:
    if first == "{":
        return JsonCall()
    return _NamedArguments() if _NAME_START.match(first) else None


_NOTATION: Final = Notation(
    openers=(_OPENER,), reader=_reader, fillers=("[", "]", ",", ";", _OPENER), special_tokens=_SPECIAL_TOKENS
)


def mistral(tools: object = ()) -> CallsInText:
    return CallsInText(_NOTATION)
