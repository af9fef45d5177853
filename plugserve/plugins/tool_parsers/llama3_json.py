"""Llama 3's way: the answer is {"name": ..., "parameters": {...}}, several apart by semicolons."""

from __future__ import annotations

from typing import Final

from plugserve.core.contracts.json_calls import JsonCall
from plugserve.plugins.tool_parsers.calls_in_text import CallsInText, Notation, Reader

_TAG: Final = "<|python_tag|>"


def _reader(first: str) -> Reader | None:
    return JsonCall() if first == "{" else None


_NOTATION: Final = Notation(
    openers=(_TAG, "{"), reader=_reader, fillers=(";", ",", _TAG), is_at_start=True, special_tokens=(_TAG,)
)


def llama3_json(tools: object = ()) -> CallsInText:
    return CallsInText(_NOTATION)
