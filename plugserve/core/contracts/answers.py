"""Parsers of an answer's text: thinking and tool calls."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The change of call number index of an answer by a piece of text. The call's first delta has its name; the joined
    arguments are the text of a JSON object, unless the answer breaks off in them. id: the call's, which the server
    gives its first delta."""

    index: int
    arguments: str
    name: str | None = None
    id: str | None = None


@dataclass(slots=True)
class AnswerDelta:
    """The change of an answer by a piece of text: content, calls, and thinking (reasoning), which tool parsers leave
    empty."""

    content: str = ""
    calls: list[ToolCallDelta] = field(default_factory=list)
    reasoning: str = ""

    def __bool__(self) -> bool:
        return bool(self.content or self.calls or self.reasoning)

    def extend(self, later: AnswerDelta) -> None:
        """Append the next delta."""
        self.content += later.content
        self.calls += later.calls
        self.reasoning += later.reasoning


@runtime_checkable
class ToolParser(Protocol):
    """Finds tool calls in one answer's text, in a server worker. The joined results are the same for every way to cut
    the text into pieces; a returned result is never revised. special_tokens: tokens of the model's vocabulary that mark
    calls and would otherwise not be part of the text."""

    special_tokens: Collection[str]

    def feed(self, text: str) -> AnswerDelta:
        """Take more text; returns what can no longer change."""

    def finish(self) -> AnswerDelta:
        """End the text; returns what was held back. Called once, last."""


@runtime_checkable
class ReasoningParser(Protocol):
    """Separates thinking from the rest of one answer's text, in a server worker. However the text is cut into pieces,
    the joined results are the same. Thinking stands between opening and closing, two texts or special tokens; both
    belong to neither part. may_think: thinking may still begin; is_thinking: it has begun and not ended. Before the
    first text the two follow from the prompt; a grammar binds an answer after its thinking only."""

    opening: str
    closing: str
    may_think: bool
    is_thinking: bool

    def feed(self, text: str) -> tuple[str, str]:
        """Take more text; returns (thinking, content), as far as they can no longer change."""

    def finish(self) -> tuple[str, str]:
        """End the text; returns what was held back, as (thinking, content). Called once, last."""
