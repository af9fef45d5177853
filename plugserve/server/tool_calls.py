"""An answer's text becomes tool calls, whole or as it grows. Knows nothing of bodies, tokens or how calls are written.

However a text is cut into pieces, the joined deltas are the same.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any, Protocol

from plugserve.core.contracts import ToolDelta, ToolParser
from plugserve.core.json_calls import JsonCall


@dataclass(frozen=True, slots=True)
class CallDelta:
    """What one piece adds to call number index. id and name come with the call's first delta only."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(slots=True)
class AnswerDelta:
    """What one piece of text adds to an answer."""

    content: str = ""
    calls: list[CallDelta] = field(default_factory=list)
    reasoning: str = ""

    def __bool__(self) -> bool:
        return bool(self.content or self.calls or self.reasoning)

    def extend(self, later: AnswerDelta) -> None:
        """Append what came after this one."""
        self.content += later.content
        self.calls += later.calls
        self.reasoning += later.reasoning


@dataclass(slots=True)
class WholeCall:
    """A call with all its arguments: the text of a JSON object, unless the answer breaks off in them."""

    id: str
    name: str
    arguments: str


def whole_calls(deltas: list[CallDelta]) -> list[WholeCall]:
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

    def feed(self, text: str) -> AnswerDelta:
        """Take more text."""

    def finish(self) -> AnswerDelta:
        """The text has ended: what was held back. Called once, last."""


class NoCalls:
    """The whole text is content."""

    def feed(self, text: str) -> AnswerDelta:
        return AnswerDelta(text)

    def finish(self) -> AnswerDelta:
        return AnswerDelta()


class NamedCall:
    """The whole text is the arguments of one function."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_open = False

    def feed(self, text: str) -> AnswerDelta:
        if not text:
            return AnswerDelta()
        if self._is_open:
            return AnswerDelta(calls=[CallDelta(0, text)])
        self._is_open = True
        return AnswerDelta(calls=[CallDelta(0, text, new_call_id(), self._name)])

    def finish(self) -> AnswerDelta:
        return AnswerDelta()


class ListedCalls:
    """The whole text is a JSON list of {"name": ..., "arguments": {...}}; a grammar sees to it. What of it names no
    call, because the answer breaks off, is content."""

    def __init__(self) -> None:
        self._call: JsonCall | None = None
        self._num_calls = 0
        self._held = ""

    def feed(self, text: str) -> AnswerDelta:
        told = AnswerDelta()
        if not self._num_calls:
            self._held += text
        while text:
            if self._call is None:
                begun = text.find("{")  # "[" or ", " stands before it
                if begun < 0:
                    break
                self._call, text = JsonCall(), text[begun:]
            text = self._feed_call(self._call, text, told)
        return told

    def _feed_call(self, call: JsonCall, text: str, told: AnswerDelta) -> str:
        """Takes one call's part of text; returns what is left."""
        was_certain = call.is_certain
        arguments, rest = call.push(text)
        if call.is_certain and not was_certain:
            told.calls.append(CallDelta(self._num_calls, arguments, new_call_id(), call.name))
            self._num_calls += 1
        elif arguments:
            told.calls.append(CallDelta(self._num_calls - 1, arguments))
        if call.is_complete or call.is_broken:
            self._call = None
        return rest

    def finish(self) -> AnswerDelta:
        return AnswerDelta("" if self._num_calls else self._held)


class WrittenCalls:
    """A text with calls in it as the model writes them, of which at most max_calls are told."""

    def __init__(self, parser: ToolParser, max_calls: int) -> None:
        self._parser = parser
        self._max_calls = max_calls

    def feed(self, text: str) -> AnswerDelta:
        return self._told(self._parser.feed(text))

    def finish(self) -> AnswerDelta:
        return self._told(self._parser.finish())

    def _told(self, delta: ToolDelta) -> AnswerDelta:
        calls = [
            CallDelta(call.index, call.arguments, None if call.name is None else new_call_id(), call.name)
            for call in delta.calls
            if call.index < self._max_calls
        ]
        return AnswerDelta(delta.content, calls)


def new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def call_object(call: CallDelta | WholeCall) -> dict[str, Any]:
    """OpenAI's tool call; a streamed one has its index, and id, type and name only in the call's first delta."""
    body: dict[str, Any] = {"index": call.index} if isinstance(call, CallDelta) else {}
    if call.name is None:
        return {**body, "function": {"arguments": call.arguments}}
    return {
        **body,
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
