"""What every reasoning parser promises, as cases for pytest: subclass ReasoningParserConformance, say how to make one.

Cases build answers from the parser's own opening and closing marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plugserve.core.contracts.answers import ReasoningParser
from plugserve.testing.text_cuts import JUNK, cuts, damaged


@dataclass(frozen=True, slots=True)
class ReasoningExample:
    """An answer's text, what the prompt holds of it already, and its parts."""

    text: str
    thinking: str
    content: str
    begun: str = ""


class ReasoningParserConformance:
    """Subclass it, name the subclass Test..., override make_parser. examples are more answers, as the model writes
    them. White space beside the marks is nobody's."""

    examples: Sequence[ReasoningExample] = ()

    def make_parser(self, begun: str) -> ReasoningParser:
        """A new parser for one answer of which the prompt holds begun, as the plugin's factory makes it."""
        raise NotImplementedError("override make_parser: return a new reasoning parser")

    def test_it_is_a_reasoning_parser(self) -> None:
        parser = self.make_parser("")
        assert isinstance(parser, ReasoningParser), f"{type(parser).__name__} lacks a part of ReasoningParser"
        for mark in ("opening", "closing"):
            value = getattr(parser, mark)
            assert isinstance(value, str), f"{mark} is {value!r}, not a text"
            assert value.strip(), f"{mark} is empty"
        assert isinstance(parser.is_thinking, bool)
        assert isinstance(parser.may_think, bool)

    def test_thinking_is_told_apart(self) -> None:
        opening, closing = self._marks()
        answer = f"{opening}\nLet me see.\n{closing}\n\nIt is 42."
        assert self._strip(self._parse([answer])) == ("Let me see.", "It is 42."), f"parts of {answer!r}"

    def test_thinking_that_the_prompt_has_begun_goes_on(self) -> None:
        opening, closing = self._marks()
        parser = self.make_parser(f"{opening}\n")
        assert parser.is_thinking, f"the prompt ends with {opening!r}, so the answer begins in thinking"
        answer = f"Let me see.\n{closing}\nIt is 42."
        assert self._strip(self._parse([answer], begun=f"{opening}\n")) == ("Let me see.", "It is 42.")

    def test_thinking_that_the_prompt_has_ended_is_over(self) -> None:
        opening, closing = self._marks()
        begun = f"{opening}\n\n{closing}\n\n"
        parser = self.make_parser(begun)
        assert not parser.is_thinking, f"the prompt ends with {closing!r}, so the answer doesn't think"
        assert self._parse(["It is 42."], begun=begun) == ("", "It is 42.")

    def test_states_follow_the_text(self) -> None:
        opening, closing = self._marks()
        parser = self.make_parser(opening)
        parser.feed("Let me see. ")
        assert parser.is_thinking
        parser.feed(f"Yes.{closing} It is 42.")
        assert not parser.is_thinking, "thinking has ended"

    def test_thinking_that_breaks_off_is_thinking(self) -> None:
        opening, closing = self._marks()
        assert self._strip(self._parse(["Let me see", " wheth"], begun=opening)) == ("Let me see wheth", "")
        thinking, content = self._parse([f"Let me see{closing[:-1]}"], begun=opening)
        assert "Let me see" in thinking
        assert content == "", "a closing mark that isn't complete closes nothing"

    def test_answers_without_marks_are_whole(self) -> None:
        for text in JUNK:
            opening, closing = self._marks()
            if opening in text or closing in text:
                continue
            is_thinking = self.make_parser("").is_thinking
            thinking, content = self._parse([text])
            told, other = (thinking, content) if is_thinking else (content, thinking)
            assert other.strip() == "", f"{text[:200]!r} without marks has two parts"
            assert told.strip() == text.strip(), f"of {text[:200]!r} only {told[:200]!r} is left"

    def test_chunks_do_not_matter(self) -> None:
        for begun in self._beginnings():
            for text in self._texts():
                whole = None
                for pieces in cuts(text, count=12, seed=len(text)):
                    parts = self._parse(pieces, begun=begun)
                    whole = whole or parts
                    assert parts == whole, (
                        f"in {len(pieces)} pieces {text[:200]!r} says {str(parts)[:300]}, in one {str(whole)[:300]}"
                    )

    def test_no_word_is_lost(self) -> None:
        opening, closing = self._marks()
        for begun in self._beginnings():
            texts = (
                f"one {opening} two {closing} three",
                f"one {closing} two {opening} three",
                f"one {closing}{closing} two",
            )
            for text in texts:
                told = " ".join(self._parse([text], begun=begun))
                for word in ("one", "two", "three"):
                    assert word not in text or word in told, f"the word {word!r} of {text!r} is lost (begun {begun!r})"

    def test_junk_is_taken(self) -> None:
        for begun in (*self._beginnings(), *JUNK[:8]):
            for text in (*JUNK, *damaged(self._texts()[:4], count=60)):
                self._parse([text], begun=begun)

    def test_examples_say_what_they_say(self) -> None:
        for example in self.examples:
            parts = self._parse([example.text], begun=example.begun)
            assert parts == (example.thinking, example.content), f"parts of {example.text!r}"

    # ------------------------------------------------ how

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
        return [*own, *damaged(own, count=30), *JUNK]

    def _parse(self, pieces: Sequence[str], *, begun: str = "") -> tuple[str, str]:
        told = ["", ""]
        try:
            parser = self.make_parser(begun)
            for parts in (*map(parser.feed, pieces), parser.finish()):
                assert len(parts) == 2, f"it returns (thinking, content), got {parts!r}"
                for n, part in enumerate(parts):
                    assert isinstance(part, str), f"it returns two texts, got {parts!r}"
                    told[n] += part
        except AssertionError:
            raise
        except (Exception, SystemExit) as error:
            raise AssertionError(f"it raised {error!r} on {''.join(pieces)[:200]!r}") from error
        return told[0], told[1]

    @staticmethod
    def _strip(parts: tuple[str, str]) -> tuple[str, str]:
        return parts[0].strip(), parts[1].strip()
