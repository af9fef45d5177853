"""An answer's text becomes tool calls, whole or as it grows. Knows nothing of bodies, tokens or how calls are written.

However a text is cut into pieces, the joined deltas are the same.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from plugserve.core.contracts import ToolParser


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


class CallParser(Protocol):
    """One answer's parser."""

    def feed(self, text: str) -> AnswerDelta:
        """Take more text."""

    def finish(self) -> AnswerDelta:
        """The text has ended: what was held back. Called once, last."""


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
    """The whole text is a JSON list of {"name": ..., "arguments": {...}}. A text that breaks off is content."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> AnswerDelta:
        self._held += text
        return AnswerDelta()

    def finish(self) -> AnswerDelta:
        try:
            calls: list[dict[str, Any]] = orjson.loads(self._held)
        except orjson.JSONDecodeError:
            return AnswerDelta(content=self._held)
        return AnswerDelta(
            calls=[
                CallDelta(index, orjson.dumps(call["arguments"]).decode(), new_call_id(), call["name"])
                for index, call in enumerate(calls)
            ]
        )


class WrittenCalls:
    """A text with calls in it as the model writes them, of which at most max_calls are told."""

    def __init__(self, parser: ToolParser, max_calls: int) -> None:
        self._parser = parser
        self._max_calls = max_calls

    def feed(self, text: str) -> AnswerDelta:
        return AnswerDelta(self._parser.feed(text))

    def finish(self) -> AnswerDelta:
        content, calls = self._parser.finish()
        told = enumerate(calls[: self._max_calls])
        return AnswerDelta(content, [CallDelta(n, call.arguments, new_call_id(), call.name) for n, call in told])


def new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def call_object(call: CallDelta, *, with_index: bool) -> dict[str, Any]:
    """OpenAI's tool call; a streamed one has its index, and id, type and name only in the call's first delta."""
    body: dict[str, Any] = {"index": call.index} if with_index else {}
    if call.name is None:
        return {**body, "function": {"arguments": call.arguments}}
    return {
        **body,
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
