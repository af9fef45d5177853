"""Pytest cases for tool parsers: subclass ToolParserConformance and override make_parser.

Set examples to answers as the model writes them; the cases cut and damage them, and add text around them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plugserve.core.contracts.answers import AnswerDelta, ToolParser
from plugserve.testing.text_cuts import MALFORMED, cuts, damaged

TOOLS: Sequence[Mapping[str, Any]] = (
    {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}},
)


@dataclass(frozen=True, slots=True)
class ToolExample:
    """An answer's text, its calls as (name, arguments), and its content."""

    text: str
    calls: Sequence[tuple[str, Mapping[str, Any]]] = ()
    content: str = ""


@dataclass(slots=True)
class Parsed:
    """The joined results of a parser for one text; calls are [name, JSON of the arguments]."""

    content: str = ""
    calls: list[list[str]] = field(default_factory=list)

    def add(self, delta: AnswerDelta) -> None:
        """Raises AssertionError if the delta breaks the contract."""
        assert isinstance(delta, AnswerDelta), f"a tool parser returns an AnswerDelta, got {type(delta).__name__}"
        self.content += delta.content
        for call in delta.calls:
            if call.index == len(self.calls):
                assert call.name, f"the first delta of call {call.index} has no name"
                self.calls.append([call.name, ""])
            assert 0 <= call.index < len(self.calls), f"call {call.index} comes before call {len(self.calls)}"
            assert call.name in (None, self.calls[call.index][0]) or self.calls[call.index][1] == "", (
                f"call {call.index} changes its name from {self.calls[call.index][0]!r} to {call.name!r}"
            )
            self.calls[call.index][1] += call.arguments

    @property
    def everything(self) -> str:
        return self.content + "".join(name + arguments for name, arguments in self.calls)


class ToolParserConformance:
    """Subclass it, name the subclass Test..., override make_parser, and set examples (at least one with a call)."""

    examples: Sequence[ToolExample] = ()

    def make_parser(self, tools: Sequence[Mapping[str, Any]]) -> ToolParser:
        """Returns a new parser for one answer to a request with tools, as the plugin's factory does."""
        raise NotImplementedError("override make_parser: return a new tool parser")

    def test_it_is_a_tool_parser(self) -> None:
        for tools in ((), TOOLS):
            parser = self.make_parser(tools)
            assert isinstance(parser, ToolParser), f"{type(parser).__name__} lacks a part of ToolParser"
            assert not isinstance(parser.special_tokens, str), "special_tokens is a collection of texts, not a text"
            assert all(isinstance(token, str) and token for token in parser.special_tokens)

    def test_examples_are_parsed_as_given(self) -> None:
        assert any(example.calls for example in self.examples), "set examples: at least one with a call"
        for example in self.examples:
            parsed = self._parse([example.text])
            calls = [(name, _object(arguments, example.text)) for name, arguments in parsed.calls]
            assert calls == [(name, dict(arguments)) for name, arguments in example.calls], f"calls of {example.text!r}"
            assert parsed.content == example.content, f"content of {example.text!r}"

    def test_results_do_not_depend_on_chunks(self) -> None:
        """The joined results are the same for a whole text, its characters, and pieces cut anywhere."""
        for text in self._texts():
            whole = None
            for pieces in cuts(text, count=12, seed=len(text)):
                parsed = self._parse(pieces)
                whole = whole or parsed
                assert parsed == whole, (
                    f"{text[:200]!r} in {len(pieces)} pieces gives {str(parsed)[:300]}, in one {str(whole)[:300]}"
                )

    def test_text_without_calls_is_content(self) -> None:
        for text in self._texts():
            parsed = self._parse([text])
            if not parsed.calls:
                assert parsed.content == text, f"of {text[:200]!r} only {parsed.content[:200]!r} is returned"

    def test_text_around_calls_is_kept(self) -> None:
        for example in self.examples:
            before, after = f"Beforehand {example.text}", f"{example.text}\nAfterwards."
            for text in (before, after, f"Beforehand\n\n{example.text} Afterwards."):
                for pieces in ([text], list(text)):
                    returned = self._parse(pieces).everything
                    for word in ("Beforehand", "Afterwards"):
                        assert word not in text or word in returned, f"the word {word!r} of {text!r} is lost"

    def test_malformed_answers_raise_nothing(self) -> None:
        """For malformed answers a parser neither raises nor returns a call without a name."""
        for text in (*MALFORMED, *damaged([*MALFORMED[:15], *(example.text for example in self.examples)], count=200)):
            self._parse([text])
            self._parse(["", text[:7], "", text[7:]])

    def test_parsers_are_independent(self) -> None:
        for example in self.examples:
            one, other = self.make_parser(TOOLS), self.make_parser(TOOLS)
            parsed, half = Parsed(), len(example.text) // 2
            parsed.add(one.feed(example.text[:half]))
            other.feed("Something else entirely. " + example.text[: half + 1])
            parsed.add(one.feed(example.text[half:]))
            other.finish()
            parsed.add(one.finish())
            assert parsed == self._parse([example.text]), "text fed to one parser changes another one's results"

    # ------------------------------------------------ helpers

    def _texts(self) -> list[str]:
        own = [example.text for example in self.examples]
        return [*own, *(f"So: {text}\n\n{text} Done." for text in own), *damaged(own, count=30), *MALFORMED]

    def _parse(self, pieces: Sequence[str]) -> Parsed:
        parser, parsed = self.make_parser(TOOLS), Parsed()
        try:
            for piece in pieces:
                parsed.add(parser.feed(piece))
            parsed.add(parser.finish())
        except AssertionError:
            raise
        except (Exception, SystemExit) as error:
            raise AssertionError(f"the parser raised {error!r} on {''.join(pieces)[:200]!r}") from error
        return parsed


def _object(text: str, answer: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise AssertionError(f"the arguments {text!r} of {answer!r} are not JSON: {error}") from error
    assert isinstance(value, dict), f"the arguments of {answer!r} are {text!r}, not an object"
    return value
