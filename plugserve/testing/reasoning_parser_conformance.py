"""Pytest cases for reasoning parsers: subclass ReasoningParserConformance and override make_parser.

The cases build answers from the parser's own opening and closing marks.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import InitVar, dataclass

from plugserve.core.contracts.answers import ReasoningParser
from plugserve.testing.text_cuts import MALFORMED, cuts, damaged


@dataclass(frozen=True, slots=True)
class ReasoningExample:
    """An answer's text and its parts. answer_prefix is the start of the answer that the prompt contains."""

    text: str
    thinking: str
    content: str
    answer_prefix: str = ""
    begun: InitVar[str | None] = None  # the former name of answer_prefix

    def __post_init__(self, begun: str | None) -> None:
        if begun is not None:
            warnings.warn("ReasoningExample's begun is now answer_prefix", DeprecationWarning, 3)
            object.__setattr__(self, "answer_prefix", begun)


class ReasoningParserConformance:
    """Subclass it, name the subclass Test..., override make_parser. examples are more answers, as the model writes
    them. White space next to the marks belongs to neither part."""

    examples: Sequence[ReasoningExample] = ()

    def make_parser(self, answer_prefix: str) -> ReasoningParser:
        """Returns a new parser for one answer whose start answer_prefix the prompt contains, as the factory does."""
        raise NotImplementedError("override make_parser: return a new reasoning parser")

    def test_it_is_a_reasoning_parser(self) -> None:
        parser = self.make_parser("")
        assert isinstance(parser, ReasoningParser), f"{type(parser).__name__} lacks a part of ReasoningParser"
        for mark in ("opening", "closing"):
            value = getattr(parser, mark)
            assert isinstance(value, str), f"{mark} is {value!r}, not a str"
            assert value.strip(), f"{mark} is empty"
        assert isinstance(parser.is_thinking, bool)
        assert isinstance(parser.may_think, bool)

    def test_thinking_and_content_are_separated(self) -> None:
        opening, closing = self._marks()
        answer = f"{opening}\nLet me see.\n{closing}\n\nIt is 42."
        assert self._strip(self._parse([answer])) == ("Let me see.", "It is 42."), f"parts of {answer!r}"

    def test_thinking_opened_by_the_prompt_continues(self) -> None:
        opening, closing = self._marks()
        parser = self.make_parser(f"{opening}\n")
        assert parser.is_thinking, f"the prompt ends with {opening!r}, so the answer begins in thinking"
        answer = f"Let me see.\n{closing}\nIt is 42."
        assert self._strip(self._parse([answer], answer_prefix=f"{opening}\n")) == ("Let me see.", "It is 42.")

    def test_thinking_closed_by_the_prompt_stays_closed(self) -> None:
        opening, closing = self._marks()
        answer_prefix = f"{opening}\n\n{closing}\n\n"
        parser = self.make_parser(answer_prefix)
        assert not parser.is_thinking, f"the prompt ends with {closing!r}, so the answer doesn't think"
        assert self._parse(["It is 42."], answer_prefix=answer_prefix) == ("", "It is 42.")

    def test_states_follow_the_text(self) -> None:
        opening, closing = self._marks()
        parser = self.make_parser(opening)
        parser.feed("Let me see. ")
        assert parser.is_thinking
        parser.feed(f"Yes.{closing} It is 42.")
        assert not parser.is_thinking, "thinking has ended"

    def test_truncated_thinking_is_thinking(self) -> None:
        opening, closing = self._marks()
        assert self._strip(self._parse(["Let me see", " wheth"], answer_prefix=opening)) == ("Let me see wheth", "")
        thinking, content = self._parse([f"Let me see{closing[:-1]}"], answer_prefix=opening)
        assert "Let me see" in thinking
        assert content == "", "an incomplete closing mark must not end thinking"

    def test_answers_without_marks_have_one_part(self) -> None:
        for text in MALFORMED:
            opening, closing = self._marks()
            if opening in text or closing in text:
                continue
            is_thinking = self.make_parser("").is_thinking
            thinking, content = self._parse([text])
            returned, other = (thinking, content) if is_thinking else (content, thinking)
            assert other.strip() == "", f"{text[:200]!r} has no marks, but two parts"
            assert returned.strip() == text.strip(), f"of {text[:200]!r} only {returned[:200]!r} is returned"

    def test_results_do_not_depend_on_chunks(self) -> None:
        for answer_prefix in self._beginnings():
            for text in self._texts():
                whole = None
                for pieces in cuts(text, count=12, seed=len(text)):
                    parts = self._parse(pieces, answer_prefix=answer_prefix)
                    whole = whole or parts
                    assert parts == whole, (
                        f"{text[:200]!r} in {len(pieces)} pieces gives {str(parts)[:300]}, in one {str(whole)[:300]}"
                    )

    def test_all_words_are_returned(self) -> None:
        opening, closing = self._marks()
        for answer_prefix in self._beginnings():
            texts = (
                f"one {opening} two {closing} three",
                f"one {closing} two {opening} three",
                f"one {closing}{closing} two",
            )
            for text in texts:
                returned = " ".join(self._parse([text], answer_prefix=answer_prefix))
                for word in ("one", "two", "three"):
                    assert word not in text or word in returned, (
                        f"the word {word!r} of {text!r} is lost (answer_prefix {answer_prefix!r})"
                    )

    def test_malformed_answers_raise_nothing(self) -> None:
        for answer_prefix in (*self._beginnings(), *MALFORMED[:8]):
            for text in (*MALFORMED, *damaged(self._texts()[:4], count=60)):
                self._parse([text], answer_prefix=answer_prefix)

    def test_examples_are_parsed_as_given(self) -> None:
        for example in self.examples:
            parts = self._parse([example.text], answer_prefix=example.answer_prefix)
            assert parts == (example.thinking, example.content), f"parts of {example.text!r}"

    # ------------------------------------------------ helpers

    def _marks(self) -> tuple[str, str]:
        parser = self.make_parser("")
        return parser.opening, parser.closing

    def _beginnings(self) -> tuple[str, ...]:
        opening, closing = self._marks()
        return "", opening, f"{opening}\n\n{closing}\n\n"

    def _texts(self) -> list[str]:
        opening, closing = self._marks()
        own = [
            f"{opening}\nLet me see.\n{closing}\n\nIt is 42.",
            f"Let me see. {closing} It is 42.",
            f"Well. {opening}Let{opening[:3]} me see.{closing[:-1]} {closing}It is {opening} 42.",
            *(example.text for example in self.examples),
        ]
        return [*own, *damaged(own, count=30), *MALFORMED]

    def _parse(self, pieces: Sequence[str], *, answer_prefix: str = "") -> tuple[str, str]:
        returned = ["", ""]
        try:
            parser = self.make_parser(answer_prefix)
            for parts in (*map(parser.feed, pieces), parser.finish()):
                assert len(parts) == 2, f"feed and finish return (thinking, content), got {parts!r}"
                for n, part in enumerate(parts):
                    assert isinstance(part, str), f"feed and finish return two strings, got {parts!r}"
                    returned[n] += part
        except AssertionError:
            raise
        except (Exception, SystemExit) as error:
            raise AssertionError(f"the parser raised {error!r} on {''.join(pieces)[:200]!r}") from error
        return returned[0], returned[1]

    @staticmethod
    def _strip(parts: tuple[str, str]) -> tuple[str, str]:
        return parts[0].strip(), parts[1].strip()
