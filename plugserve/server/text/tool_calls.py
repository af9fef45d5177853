"""Parsers of tool calls in an answer, complete or streamed. Models' own notations are read by plugins' parsers.

However a text is cut into pieces, the joined deltas are the same.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import Any, Protocol

from plugserve.core.contracts.answers import AnswerDelta, ToolCallDelta, ToolParser
from plugserve.core.contracts.json_calls import JsonCall


@dataclass(slots=True)
class WholeCall:
    """A call with all its arguments: the text of a JSON object, unless the answer breaks off in them."""

    id: str
    name: str
    arguments: str


def whole_calls(deltas: list[ToolCallDelta]) -> list[WholeCall]:
    """The calls that deltas add up to."""
    calls: dict[int, WholeCall] = {}
    for delta in deltas:
        if delta.name is not None:
            calls[delta.index] = WholeCall(delta.id or "", delta.name, delta.arguments)
        else:
            calls[delta.index].arguments += delta.arguments
    return list(calls.values())


class CallParser(Protocol):
    """One answer's parser."""

    @property
    def is_over(self) -> bool:
        """True if the parser needs no more text: the answer may end here."""

    def feed(self, text: str) -> AnswerDelta:
        """Take more text."""

    def finish(self) -> AnswerDelta:
        """End the answer; returns the text that was held back. Called once, last."""


class NoCalls:
    """The whole text is content."""

    is_over = False

    def feed(self, text: str) -> AnswerDelta:
        return AnswerDelta(text)

    def finish(self) -> AnswerDelta:
        return AnswerDelta()


class NamedCall:
    """The whole text is the arguments of one function."""

    is_over = False

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_open = False

    def feed(self, text: str) -> AnswerDelta:
        if not text:
            return AnswerDelta()
        if self._is_open:
            return AnswerDelta(calls=[ToolCallDelta(0, text)])
        self._is_open = True
        return AnswerDelta(calls=[ToolCallDelta(0, text, self._name, new_call_id())])

    def finish(self) -> AnswerDelta:
        return AnswerDelta()


class ListedCalls:
    """The whole text is a JSON list of {"name": ..., "arguments": {...}}; a grammar ensures that. Text at the end of a
    truncated answer that names no call is content.

    Small models write the same call again and again. So the answer ends before the first call that repeats an earlier
    one: a call's text is held back while it equals the start of an earlier call.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._call: JsonCall | None = None
        self._calls: list[WholeCall] = []  # the last one may still grow
        self._pending = ""  # of the last one, while it may be a repetition
        self._is_shown = True
        self._held = ""

    def feed(self, text: str) -> AnswerDelta:
        delta = AnswerDelta()
        if not self._calls:
            self._held += text
        while text and not self.is_over:
            if self._call is None:
                start = text.find("{")  # "[" or ", " stands before it
                if start < 0:
                    break
                self._call, text = JsonCall(), text[start:]
            text = self._feed_call(self._call, text, delta)
        return delta

    def _feed_call(self, call: JsonCall, text: str, delta: AnswerDelta) -> str:
        """Takes one call's part of text; returns what is left."""
        was_certain = call.is_certain
        arguments, rest = call.push(text)
        if call.is_certain and not was_certain:
            self._calls.append(WholeCall(new_call_id(), call.name or "", ""))
            self._is_shown = False
        if call.is_certain:
            self._add(arguments, is_whole=call.is_complete, delta=delta)
        if call.is_complete or call.is_broken:
            self._call = None
        return rest

    def _add(self, arguments: str, *, is_whole: bool, delta: AnswerDelta) -> None:
        *earlier, last = self._calls
        last.arguments += arguments
        self._pending += arguments
        alike = [call.arguments for call in earlier if call.name == last.name]
        if not self._is_shown and is_whole and last.arguments in alike:
            self.is_over = True
        elif self._is_shown or not any(call.startswith(last.arguments) for call in alike):
            self._show(delta)

    def _show(self, delta: AnswerDelta) -> None:
        last, pending = self._calls[-1], self._pending
        if self._is_shown and not pending:
            return
        name, id = (None, None) if self._is_shown else (last.name, last.id)
        delta.calls.append(ToolCallDelta(len(self._calls) - 1, pending, name, id))
        self._pending, self._is_shown = "", True

    def finish(self) -> AnswerDelta:
        delta = AnswerDelta("" if self._calls else self._held)
        if not self._is_shown and not self.is_over:
            self._show(delta)  # cut off while it might have become a repetition
        return delta


class WrittenCalls:
    """A text with calls in it as the model writes them; calls beyond max_calls are left out."""

    is_over = False

    def __init__(self, parser: ToolParser, max_calls: int) -> None:
        self._parser = parser
        self._max_calls = max_calls

    def feed(self, text: str) -> AnswerDelta:
        return self._with_ids(self._parser.feed(text))

    def finish(self) -> AnswerDelta:
        return self._with_ids(self._parser.finish())

    def _with_ids(self, delta: AnswerDelta) -> AnswerDelta:
        calls = [
            call if call.name is None else replace(call, id=new_call_id())
            for call in delta.calls
            if call.index < self._max_calls
        ]
        return AnswerDelta(delta.content, calls)


def new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def call_object(call: ToolCallDelta | WholeCall) -> dict[str, Any]:
    """OpenAI's tool call; a streamed one has its index, and id, type and name only in the call's first delta."""
    body: dict[str, Any] = {"index": call.index} if isinstance(call, ToolCallDelta) else {}
    if call.name is None:
        return {**body, "function": {"arguments": call.arguments}}
    return {
        **body,
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
