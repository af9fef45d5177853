"""Splits one answer's text into thinking, content and calls with plugins' parsers. If a parser fails, the rest of that
answer is content.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from plugserve.core.contracts.answers import AnswerDelta, ReasoningParser, ToolParser
from plugserve.core.contracts.factories import ReasoningParserFactory, ToolParserFactory
from plugserve.core.plugin_system.failure_policy import is_shutdown
from plugserve.server.text.deadline import Deadline
from plugserve.server.text.tool_calls import CallParser

_CALL_S: Final = 0.25  # a parser's time for one piece of text
_ANSWER_S: Final = 5.0  # and for a whole answer
Result = TypeVar("Result")
FailureReporter = Callable[[str, str, BaseException], None]
"""(plugin, hook, error): a plugin's parser failed."""
TimeReporter = Callable[[str, str, float], None]
"""(plugin, hook, seconds): the time of a plugin's parser for a whole answer."""


@dataclass(frozen=True, slots=True)
class Thinking:
    """The marks around an answer's thinking. is_open: the prompt contains the opening mark, so the answer begins with
    thinking."""

    opening: str
    closing: str
    is_open: bool


@dataclass(frozen=True, slots=True)
class AnswerParsers:
    """The parsers of one model's answers, and the plugins that they come from. special_tokens: those that the parsers'
    input must contain. reads_json: calls are plain JSON, which a prompt can ask any model for."""

    tools: ToolParserFactory | None = None
    reasoning: ReasoningParserFactory | None = None
    tool_plugin: str = ""
    reasoning_plugin: str = ""
    special_tokens: Collection[str] = ()
    reads_json: bool = False
    report_failure: FailureReporter = lambda plugin, hook, error: None
    report_time: TimeReporter = lambda plugin, hook, seconds: None

    def thinking(self, answer_prefix: str | None) -> Thinking | None:
        """The marks of thinking; None if an answer that begins with answer_prefix can't contain thinking."""
        parser = self.new_reasoning(answer_prefix)
        if parser is None or not (parser.is_thinking or parser.may_think):
            return None
        return Thinking(parser.opening, parser.closing, parser.is_thinking)

    def new_reasoning(self, answer_prefix: str | None) -> SafeReasoning | None:
        """A parser for one answer; answer_prefix is the part of it that its prompt holds, None where thinking isn't
        separated."""
        if self.reasoning is None or answer_prefix is None:
            return None
        factory = self.reasoning
        reporter = self._reporter(self.reasoning_plugin, "plugserve_reasoning_parsers")
        return SafeReasoning(lambda: factory(answer_prefix), reporter)

    def new_tools(self, tools: Sequence[Mapping[str, Any]]) -> ToolParser | None:
        """A parser for one answer that may hold calls of tools; None where that is turned off."""
        if self.tools is None:
            return None
        factory = self.tools
        return SafeTools(lambda: factory(tools), self._reporter(self.tool_plugin, "plugserve_tool_parsers"))

    def _reporter(self, plugin: str, hook: str) -> ParserReporter:
        return ParserReporter(plugin, hook, self.report_failure, self.report_time)


@dataclass(frozen=True, slots=True)
class ParserReporter:
    """Reports one parser's failure and time under its plugin and hook."""

    plugin: str
    hook: str
    report_failure: FailureReporter
    report_time: TimeReporter

    def failed(self, error: BaseException) -> None:
        self.report_failure(self.plugin, self.hook, error)

    def took(self, seconds: float) -> None:
        self.report_time(self.plugin, self.hook, seconds)


class _Guard:
    """Runs one parser's calls; the first failure is reported and is its last call."""

    def __init__(self, reporter: ParserReporter) -> None:
        self._reporter = reporter
        self._deadline = Deadline(_CALL_S, _ANSWER_S)
        self.has_failed = False

    def settle(self) -> None:
        """Report the parser's time at the end of the answer."""
        self._reporter.took(self._deadline.used_s)

    def run(self, work: Callable[[], Result], otherwise: Callable[[], Result]) -> Result:
        if self.has_failed:
            return otherwise()
        try:
            return self._deadline.run(work)
        except BaseException as error:
            if is_shutdown(error):
                raise
            self.has_failed = True
            self._reporter.failed(error)
            return otherwise()


class EmittedText:
    """Records a parser's input and the content that it returned, to find the text that it held back when it fails."""

    def __init__(self) -> None:
        self._fed = ""
        self._emitted = ""
        self._is_known = True

    def feed(self, text: str) -> None:
        if self._is_known:
            self._fed += text

    def emit(self, content: str, *, is_all: bool) -> None:
        """is_all: the parser returned nothing but content."""
        self._emitted += content
        self._is_known &= is_all and self._fed.startswith(self._emitted)

    def withheld(self, text: str) -> str:
        """The input that was not returned; only text, the last piece, if that is unknown."""
        return self._fed[len(self._emitted) :] if self._is_known else text


class SafeTools:
    """Wraps a ToolParser; never raises, and bounds its time."""

    special_tokens: Collection[str] = ()

    def __init__(self, make: Callable[[], ToolParser], reporter: ParserReporter) -> None:
        self._guard = _Guard(reporter)
        self._emitted = EmittedText()
        self._parser: ToolParser | None = self._guard.run(make, lambda: None)

    def feed(self, text: str) -> AnswerDelta:
        return self._run(text, lambda parser: parser.feed(text))

    def finish(self) -> AnswerDelta:
        last = self._run("", lambda parser: parser.finish())
        self._guard.settle()
        return last

    def _run(self, text: str, work: Callable[[ToolParser], AnswerDelta]) -> AnswerDelta:
        parser = self._parser
        if parser is None:
            return AnswerDelta(text)
        self._emitted.feed(text)
        delta = self._guard.run(lambda: _checked_delta(work(parser)), lambda: AnswerDelta(self._emitted.withheld(text)))
        self._emitted.emit(delta.content, is_all=not delta.calls)
        if self._guard.has_failed:
            self._parser = None
        return delta


class SafeReasoning:
    """Wraps a ReasoningParser; never raises, and bounds its time."""

    def __init__(self, make: Callable[[], ReasoningParser], reporter: ParserReporter) -> None:
        self._guard = _Guard(reporter)
        self._emitted = EmittedText()
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
        last = self._run("", lambda parser: parser.finish())
        self._guard.settle()
        return last

    def _run(self, text: str, work: Callable[[ReasoningParser], tuple[str, str]]) -> tuple[str, str]:
        parser = self._parser
        if parser is None:
            return "", text
        self._emitted.feed(text)
        thinking, content = self._guard.run(
            lambda: _checked_parts(work(parser)), lambda: ("", self._emitted.withheld(text))
        )
        self._emitted.emit(content, is_all=not thinking)
        self._note_state()
        return thinking, content

    def _note_state(self) -> None:
        if self._guard.has_failed:
            self._parser = None
        parser = self._parser
        self.may_think = parser is not None and bool(parser.may_think)
        self.is_thinking = parser is not None and bool(parser.is_thinking)


def _checked_delta(delta: AnswerDelta) -> AnswerDelta:
    if not isinstance(delta, AnswerDelta) or not isinstance(delta.content, str):
        raise TypeError(f"a tool parser must return an AnswerDelta, got {type(delta).__name__}")
    return delta


def _checked_parts(parts: tuple[str, str]) -> tuple[str, str]:
    thinking, content = parts
    if not isinstance(thinking, str) or not isinstance(content, str):
        raise TypeError("a reasoning parser must return (thinking, content), two strings")
    return thinking, content


class AnswerParser:
    """One answer: thinking first where the model thinks, then calls. shows_reasoning: thinking is part of the
    deltas; it is counted in any case. Counts are None without a reasoning parser."""

    def __init__(self, reasoning: SafeReasoning | None, calls: CallParser, *, shows_reasoning: bool = True) -> None:
        self._reasoning = reasoning
        self._calls = calls
        self._shows_reasoning = shows_reasoning
        self.num_reasoning_tokens: int | None = None if reasoning is None else 0
        self.has_calls = False
        self._num_fed = 0

    @property
    def is_over(self) -> bool:
        """The parser needs no more text: the answer may end here."""
        return self._calls.is_over

    def feed(self, text: str, offsets: Sequence[int]) -> AnswerDelta:
        """Take more text. offsets: how many characters of the answer stand before each token of this piece."""
        if self._reasoning is None:
            return self._noted(self._calls.feed(text))
        thinking, content = self._split(self._reasoning, text, offsets)
        return self._with_thinking(thinking, self._calls.feed(content))

    def finish(self) -> AnswerDelta:
        """End the answer; returns the text that was held back."""
        if self._reasoning is None:
            return self._noted(self._calls.finish())
        thinking, content = self._reasoning.finish()
        delta = self._with_thinking(thinking, self._calls.feed(content))
        delta.extend(self._noted(self._calls.finish()))
        return delta

    def _with_thinking(self, thinking: str, delta: AnswerDelta) -> AnswerDelta:
        delta.reasoning = thinking if self._shows_reasoning else ""
        return self._noted(delta)

    def _noted(self, delta: AnswerDelta) -> AnswerDelta:
        self.has_calls |= bool(delta.calls)
        return delta

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
