"""The conformance kit fails each reasoning parser that has a planted bug."""

from __future__ import annotations

import pytest

from plugserve.plugins.reasoning_parsers.think_tags import ThinkTags
from plugserve.testing import ReasoningExample, ReasoningParserConformance
from tests.testing.kit_runner import catches


class CutsTags(ThinkTags):
    """Passes on a partial tag instead of holding it back."""

    def feed(self, text):
        thinking, content = super().feed(text)
        held, self._held = self._held, ""
        return (thinking + held, content) if self.is_thinking else (thinking, content + held)


class LosesAnOpenTag(ThinkTags):
    def finish(self):
        return "", ""


class IgnoresThePrompt(ThinkTags):
    def __init__(self, answer_prefix):
        super().__init__("")


class NeverEndsThinking(ThinkTags):
    def feed(self, text):
        thinking, content = super().feed(text)
        return thinking + content, ""


class RaisesOnTwoTags(ThinkTags):
    def feed(self, text):
        _, _, _ = text.partition("</think>")
        if text.count("</think>") > 1:
            raise ValueError("two")
        return super().feed(text)


@pytest.mark.parametrize(
    "parser",
    [CutsTags, LosesAnOpenTag, IgnoresThePrompt, NeverEndsThinking, RaisesOnTwoTags],
    ids=lambda parser: parser.__name__,
)
def test_reasoning_parser_bug_is_caught(parser):
    class Case(ReasoningParserConformance):
        def make_parser(self, answer_prefix):
            return parser(answer_prefix)

    assert catches(Case, "Error")


def test_former_name_of_the_answer_prefix_works_with_a_warning():
    with pytest.warns(DeprecationWarning, match="answer_prefix"):
        example = ReasoningExample("text", "thinking", "content", begun="<think>")
    assert example.answer_prefix == "<think>"
