"""The tools that an answer may or has to call: its parser, and the grammar of forced calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from plugserve.core.errors import RequestError
from plugserve.server.sandbox.grammar_process import with_safe_integers
from plugserve.server.text.answer_parsers import AnswerParsers
from plugserve.server.text.closed_schema import closed_parameters
from plugserve.server.text.grammars import MAX_SOURCE_BYTES, GrammarSource
from plugserve.server.text.tool_calls import CallParser, ListedCalls, NamedCall, WrittenCalls

_ONE_LINE: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_MAX_BYTES: Final = 4 * MAX_SOURCE_BYTES


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """Tools that the answer has to call, or may call (is_auto): named is the one to call, None for any."""

    tools: Sequence[Mapping[str, Any]]
    named: str | None
    max_calls: int
    is_auto: bool = False

    def new_parser(self, of_model: AnswerParsers) -> CallParser:
        """A parser for one answer. Raises RequestError (400) where the model may not call tools by itself."""
        if self.named is not None:
            return NamedCall(self.named)
        if not self.is_auto:
            return ListedCalls()
        parser = of_model.new_tools(self.tools)
        if parser is None:
            raise RequestError(
                "tool_choice: 'auto' needs a server started with --enable-auto-tool-choice; send 'none', 'required' or "
                "name a function",
                param="tool_choice",
            )
        return WrittenCalls(parser, self.max_calls)

    @property
    def grammar(self) -> GrammarSource | None:
        """An answer's grammar: a tool's arguments, or a list of {"name": ..., "arguments": ...}."""
        if self.is_auto:
            return None
        if self.named is not None:
            return GrammarSource("lark", f"start: %json {_parameters(self._tool(self.named))}", "tools", _MAX_BYTES)
        more = f'(", " call){{0,{self.max_calls - 1}}}' if self.max_calls > 1 else ""
        rules = [f'start: "[" call {more} "]"']
        rules.append("call: " + " | ".join(f"tool{index}" for index in range(len(self.tools))))
        for index, tool in enumerate(self.tools):
            head = json.dumps(f'{{"name": "{tool["function"]["name"]}", "arguments": ')
            rules.append(f'tool{index}: {head} arguments{index} "}}"')
            rules.append(f"arguments{index}: %json {_parameters(tool)}")
        return GrammarSource("lark", "\n".join(rules), "tools", _MAX_BYTES)

    def _tool(self, name: str) -> Mapping[str, Any]:
        return next(tool for tool in self.tools if tool["function"]["name"] == name)


def _parameters(tool: Mapping[str, Any]) -> str:
    """A tool's schema, closed and on one line, so that a small model comes to an end; keys that can't be bound are let
    through unless it is strict."""
    function = tool["function"]
    try:
        schema = with_safe_integers(closed_parameters(function.get("parameters")))
        schema["x-guidance"] = {**_ONE_LINE, "lenient": not function.get("strict")}
        return json.dumps(schema, ensure_ascii=False)
    except RecursionError:
        name = function["name"]
        raise RequestError(f"tools: the parameters of {name!r} nest too deeply", param="tools") from None
