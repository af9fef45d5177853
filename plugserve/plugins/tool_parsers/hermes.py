"""Hermes' and Qwen's way: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, as often as there are calls."""

from __future__ import annotations

from typing import Final

from plugserve.core.contracts.json_calls import JsonCall
from plugserve.plugins.tool_parsers.calls_in_text import CallsInText, Notation, Reader

_OPENER: Final = "<tool_call>"
_CLOSER: Final = "</tool_call>"


def _reader(first: str) -> Reader | None:
    return JsonCall(needs_arguments=False) if first == "{" else None


_NOTATION: Final = Notation(
    openers=(_OPENER,),
    reader=_reader,
    fillers=("[", "]", ",", ";", _OPENER),
    closers=(_CLOSER,),
    special_tokens=(_OPENER, _CLOSER),
)


def hermes(tools: object = ()) -> CallsInText:
    return CallsInText(_NOTATION)
