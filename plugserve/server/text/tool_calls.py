"""An answer's text becomes tool calls, whole or as it grows. Knows nothing of bodies, tokens or how calls are written.

However a text is cut into pieces, the joined deltas are the same.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any, Protocol

from plugserve.core.contracts.answers import ToolDelta, ToolParser
from plugserve.core.contracts.json_calls import JsonCall


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

    @property
    def is_over(self) -> bool:
        """Nothing new will come: the answer may end here."""

    def feed(self, text: str) -> AnswerDelta:
        """Take more text."""

    def finish(self) -> AnswerDelta:
        """The text has ended: what was held back. Called once, last."""


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
            return AnswerDelta(calls=[CallDelta(0, text)])
        self._is_open = True
        return AnswerDelta(calls=[CallDelta(0, text, new_call_id(), self._name)])

    def finish(self) -> AnswerDelta:
        return AnswerDelta()


class ListedCalls:
    """The whole text is a JSON list of {"name": ..., "arguments": {...}}; a grammar sees to it. What of it names no
    call, because the answer breaks off, is content.

    Small models write the same call again and again. So the answer is over with the first call that repeats an earlier
    one, which is not told: a call's text waits while it may still become a repetition.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._call: JsonCall | None = None
        self._calls: list[WholeCall] = []  # the last one may still grow
        self._untold = ""  # of the last one, while it may be a repetition
        self._is_told = True
        self._held = ""

    def feed(self, text: str) -> AnswerDelta:
        told = AnswerDelta()
        if not self._calls:
            self._held += text
        while text and not self.is_over:
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
            self._calls.append(WholeCall(new_call_id(), call.name or "", ""))
            self._is_told = False
        if call.is_certain:
            self._add(arguments, is_whole=call.is_complete, told=told)
        if call.is_complete or call.is_broken:
            self._call = None
        return rest

    def _add(self, arguments: str, *, is_whole: bool, told: AnswerDelta) -> None:
        *earlier, last = self._calls
        last.arguments += arguments
        self._untold += arguments
        alike = [call.arguments for call in earlier if call.name == last.name]
        if not self._is_told and is_whole and last.arguments in alike:
            self.is_over = True
        elif self._is_told or not any(call.startswith(last.arguments) for call in alike):
            self._tell(told)

    def _tell(self, told: AnswerDelta) -> None:
        last, untold = self._calls[-1], self._untold
        if self._is_told and not untold:
            return
        id, name = (None, None) if self._is_told else (last.id, last.name)
        told.calls.append(CallDelta(len(self._calls) - 1, untold, id, name))
        self._untold, self._is_told = "", True

    def finish(self) -> AnswerDelta:
        told = AnswerDelta("" if self._calls else self._held)
        if not self._is_told and not self.is_over:
            self._tell(told)  # cut off while it might have become a repetition
        return told


class WrittenCalls:
    """A text with calls in it as the model writes them, of which at most max_calls are told."""

    is_over = False

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
