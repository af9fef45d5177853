"""One answer's text becomes thinking, content and calls. Plugins' parsers do it; one that fails is left out of the rest
of that answer, and its text is content. Knows nothing of JSON or HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from plugserve.core.contracts.answers import ReasoningParser, ToolDelta, ToolParser
from plugserve.core.contracts.factories import ReasoningParserFactory, ToolParserFactory
from plugserve.core.plugin_system.failure_policy import is_shutdown
from plugserve.server.text.deadline import Deadline
from plugserve.server.text.tool_calls import AnswerDelta, CallParser

_CALL_S: Final = 0.25  # a parser's time for one piece of text
_ANSWER_S: Final = 5.0  # and for a whole answer
Result = TypeVar("Result")
Report = Callable[[str, str, BaseException], None]
"""(plugin, hook, error): a plugin's parser failed."""
Spend = Callable[[str, str, float], None]
"""(plugin, hook, seconds): a plugin's parser took so long for a whole answer."""


@dataclass(frozen=True, slots=True)
class Thinking:
    """How an answer's thinking is marked, and what the prompt says of it: is_open, the answer begins in it."""

    opening: str
    closing: str
    is_open: bool


@dataclass(frozen=True, slots=True)
class AnswerParsers:
    """The parsers of one model's answers, and the plugins that they come from. special_tokens: those that the parsers
    have to see. reads_json: calls are plain JSON, which any model can be asked for."""

    tools: ToolParserFactory | None = None
    reasoning: ReasoningParserFactory | None = None
    tool_plugin: str = ""
    reasoning_plugin: str = ""
    special_tokens: Collection[str] = ()
    reads_json: bool = False
    report: Report = lambda plugin, hook, error: None
    spend: Spend = lambda plugin, hook, seconds: None

    def thinking(self, begun: str | None) -> Thinking | None:
        """None where the answer that begins with begun can't think."""
        parser = self.new_reasoning(begun)
        if parser is None or not (parser.is_thinking or parser.may_think):
            return None
        return Thinking(parser.opening, parser.closing, parser.is_thinking)

    def new_reasoning(self, begun: str | None) -> SafeReasoning | None:
        """A parser for one answer; begun is what its prompt holds of it, None where thinking isn't told apart."""
        if self.reasoning is None or begun is None:
            return None
        factory = self.reasoning
        return SafeReasoning(
            lambda: factory(begun), self._witness(self.reasoning_plugin, "plugserve_reasoning_parsers")
        )

    def new_tools(self, tools: Sequence[Mapping[str, Any]]) -> ToolParser | None:
        """A parser for one answer that may hold calls of tools; None where that is turned off."""
        if self.tools is None:
            return None
        factory = self.tools
        return SafeTools(lambda: factory(tools), self._witness(self.tool_plugin, "plugserve_tool_parsers"))

    def _witness(self, plugin: str, hook: str) -> Witness:
        return Witness(
            lambda error: self.report(plugin, hook, error), lambda seconds: self.spend(plugin, hook, seconds)
        )


@dataclass(frozen=True, slots=True)
class Witness:
    """Who is told how one parser failed, and how long it took for an answer."""

    report: Callable[[BaseException], None]
    spend: Callable[[float], None] = lambda seconds: None


class _Guard:
    """Runs one parser's calls; the first failure is reported and is its last call."""

    def __init__(self, witness: Witness) -> None:
        self._report = witness.report
        self._spend = witness.spend
        self._deadline = Deadline(_CALL_S, _ANSWER_S)
        self.has_failed = False

    def settle(self) -> None:
        """The answer has ended."""
        self._spend(self._deadline.used_s)

    def run(self, work: Callable[[], Result], otherwise: Callable[[], Result]) -> Result:
        if self.has_failed:
            return otherwise()
        try:
            return self._deadline.run(work)
        except BaseException as error:
            if is_shutdown(error):
                raise
            self.has_failed = True
            self._report(error)
            return otherwise()


class _Told:
    """What a parser was fed and what it told as content, to find what it withholds when it fails."""

    def __init__(self) -> None:
        self._fed = ""
        self._told = ""
        self._is_known = True

    def feed(self, text: str) -> None:
        if self._is_known:
            self._fed += text

    def tell(self, content: str, *, is_all: bool) -> None:
        """is_all: nothing else was told."""
        self._told += content
        self._is_known &= is_all and self._fed.startswith(self._told)

    def withheld(self, text: str) -> str:
        """What was fed and not told; only text, the last piece, where that can't be said."""
        return self._fed[len(self._told) :] if self._is_known else text


class SafeTools:
    """A ToolParser that never raises and always ends."""

    special_tokens: Collection[str] = ()

    def __init__(self, make: Callable[[], ToolParser], witness: Witness) -> None:
        self._guard = _Guard(witness)
        self._told = _Told()
        self._parser: ToolParser | None = self._guard.run(make, lambda: None)

    def feed(self, text: str) -> ToolDelta:
        return self._run(text, lambda parser: parser.feed(text))

    def finish(self) -> ToolDelta:
        told = self._run("", lambda parser: parser.finish())
        self._guard.settle()
        return told

    def _run(self, text: str, work: Callable[[ToolParser], ToolDelta]) -> ToolDelta:
        parser = self._parser
        if parser is None:
            return ToolDelta(text)
        self._told.feed(text)
        delta = self._guard.run(lambda: _checked_delta(work(parser)), lambda: ToolDelta(self._told.withheld(text)))
        self._told.tell(delta.content, is_all=not delta.calls)
        if self._guard.has_failed:
            self._parser = None
        return delta


class SafeReasoning:
    """A ReasoningParser that never raises and always ends."""

    def __init__(self, make: Callable[[], ReasoningParser], witness: Witness) -> None:
        self._guard = _Guard(witness)
        self._told = _Told()
        self._parser: ReasoningParser | None = None
        self.opening = self.closing = ""
        self.may_think = self.is_thinking = False
        self._parser = self._guard.run(make, lambda: None)
        if self._parser is not None:
            self.opening, self.closing = self._parser.opening, self._parser.closing
        self._note_state()

    def feed(self, text: str) -> tuple[str, str]:
        return self._run(text, lambda parser: parser.feed(text))

    def finish(self) -> tuple[str, str]:
        told = self._run("", lambda parser: parser.finish())
        self._guard.settle()
        return told

    def _run(self, text: str, work: Callable[[ReasoningParser], tuple[str, str]]) -> tuple[str, str]:
        parser = self._parser
        if parser is None:
            return "", text
        self._told.feed(text)
        thinking, content = self._guard.run(
            lambda: _checked_parts(work(parser)), lambda: ("", self._told.withheld(text))
        )
        self._told.tell(content, is_all=not thinking)
        self._note_state()
        return thinking, content

    def _note_state(self) -> None:
        if self._guard.has_failed:
            self._parser = None
        parser = self._parser
        self.may_think = parser is not None and bool(parser.may_think)
        self.is_thinking = parser is not None and bool(parser.is_thinking)


def _checked_delta(delta: ToolDelta) -> ToolDelta:
    if not isinstance(delta, ToolDelta) or not isinstance(delta.content, str):
        raise TypeError(f"a tool parser must return a ToolDelta, got {type(delta).__name__}")
    return delta


def _checked_parts(parts: tuple[str, str]) -> tuple[str, str]:
    thinking, content = parts
    if not isinstance(thinking, str) or not isinstance(content, str):
        raise TypeError("a reasoning parser must return (thinking, content), two strings")
    return thinking, content


class AnswerParser:
    """One answer: thinking first where the model thinks, then calls. tells_reasoning: thinking is part of what is told;
    it is counted in any case. Counts are None without a reasoning parser."""

    def __init__(self, reasoning: SafeReasoning | None, calls: CallParser, *, tells_reasoning: bool = True) -> None:
        self._reasoning = reasoning
        self._calls = calls
        self._tells_reasoning = tells_reasoning
        self.num_reasoning_tokens: int | None = None if reasoning is None else 0
        self.has_calls = False
        self._num_fed = 0

    @property
    def is_over(self) -> bool:
        """Nothing new will come: the answer may end here."""
        return self._calls.is_over

    def feed(self, text: str, offsets: Sequence[int]) -> AnswerDelta:
        """Take more text. offsets: how many characters of the answer stand before each token of this piece."""
        if self._reasoning is None:
            return self._noted(self._calls.feed(text))
        thinking, content = self._split(self._reasoning, text, offsets)
        return self._with_thinking(thinking, self._calls.feed(content))

    def finish(self) -> AnswerDelta:
        """The text has ended: what was held back."""
        if self._reasoning is None:
            return self._noted(self._calls.finish())
        thinking, content = self._reasoning.finish()
        told = self._with_thinking(thinking, self._calls.feed(content))
        told.extend(self._noted(self._calls.finish()))
        return told

    def _with_thinking(self, thinking: str, told: AnswerDelta) -> AnswerDelta:
        told.reasoning = thinking if self._tells_reasoning else ""
        return self._noted(told)

    def _noted(self, told: AnswerDelta) -> AnswerDelta:
        self.has_calls |= bool(told.calls)
        return told

    def _split(self, parser: SafeReasoning, text: str, offsets: Sequence[int]) -> tuple[str, str]:
        """(thinking, content). While there may be thinking, text is fed token by token to count its tokens."""
        start, self._num_fed = self._num_fed, self._num_fed + len(text)
        if not (parser.is_thinking or parser.may_think):
            return parser.feed(text)
        parts: list[tuple[str, str]] = []
        at = 0
        for next_offset in [*offsets[1:], start + len(text)]:
            was_thinking = parser.is_thinking
            end = min(max(next_offset - start, at), len(text))
            if end > at:
                parts.append(parser.feed(text[at:end]))
                at = end
            if offsets and (was_thinking or parser.is_thinking):
                assert self.num_reasoning_tokens is not None
                self.num_reasoning_tokens += 1
        return "".join(thinking for thinking, _ in parts), "".join(content for _, content in parts)
