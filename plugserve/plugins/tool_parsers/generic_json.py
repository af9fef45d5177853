"""For models without a notation of their own: the answer is a call as JSON, a list of calls, or either in a fence."""

from __future__ import annotations

from typing import Final

from plugserve.core.contracts.json_calls import JsonCall
from plugserve.plugins.tool_parsers.calls_in_text import CallsInText, Notation, Reader

_FENCE: Final = "```"


def _reader(first: str) -> Reader | None:
    return JsonCall() if first == "{" else None


_NOTATION: Final = Notation(
    openers=("{", "[", _FENCE + "json", _FENCE),
    reader=_reader,
    fillers=("[", "]", ",", ";"),
    closers=(_FENCE,),
    is_at_start=True,
)


def generic_json(tools: object = ()) -> CallsInText:
    return CallsInText(_NOTATION)
