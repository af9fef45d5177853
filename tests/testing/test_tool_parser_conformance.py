"""The conformance kit fails each tool parser that has a planted bug."""

from __future__ import annotations

import dataclasses
import json

import pytest

from plugserve.core.contracts.answers import AnswerDelta
from plugserve.plugins.tool_parsers.calls_in_text import CallsInText
from plugserve.plugins.tool_parsers.hermes import hermes
from plugserve.testing import ToolExample, ToolParserConformance
from tests.testing.kit_runner import catches


class DropsHeldText(CallsInText):
    """Looks for the opening mark in each piece alone, without the text held back from the piece before."""

    def feed(self, text):
        self._texts.append(self._held)
        self._held = ""
        return super().feed(text)


class LosesTheEnd(CallsInText):
    def finish(self):
        super().finish()
        return AnswerDelta()


class LosesWhatFollowsACall(CallsInText):
    def feed(self, text):
        had_calls = self._num_calls
        delta = super().feed(text)
        return AnswerDelta("" if had_calls else delta.content, delta.calls)


class LosesBrokenCalls(CallsInText):
    def finish(self):
        return AnswerDelta("", super().finish().calls)


class RaisesOnMalformedCalls(CallsInText):
    def finish(self):
        if self._held or self._untold:
            json.loads(self._held or "".join(self._untold))
        return super().finish()


class NamesCallsLate(CallsInText):
    def feed(self, text):
        delta = super().feed(text)
        return AnswerDelta(delta.content, [dataclasses.replace(call, name=None) for call in delta.calls])


class CountsFromOne(CallsInText):
    def feed(self, text):
        delta = super().feed(text)
        return AnswerDelta(delta.content, [dataclasses.replace(call, index=call.index + 1) for call in delta.calls])


class SharesStateBetweenAnswers(CallsInText):
    everything = []  # of the class, not of the answer

    def feed(self, text):
        self.everything.append(text)
        delta = super().feed(text)
        return AnswerDelta(delta.content + ("" if len(self.everything) < 40 else "!"), delta.calls)


TOOL_PARSER_BUGS = [
    (DropsHeldText, "pieces"),
    (LosesTheEnd, "is returned"),
    (LosesWhatFollowsACall, "'Afterwards'"),
    (LosesBrokenCalls, "is returned"),
    (RaisesOnMalformedCalls, "parser raised"),
    (NamesCallsLate, "has no name"),
    (CountsFromOne, "comes before call"),
    (SharesStateBetweenAnswers, "Error"),
]


@pytest.mark.parametrize(("parser", "word"), TOOL_PARSER_BUGS, ids=lambda value: getattr(value, "__name__", ""))
def test_tool_parser_bug_is_caught(parser, word):
    class Case(ToolParserConformance):
        examples = (
            ToolExample('<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>', [("f", {"x": 1})]),
            ToolExample("a <tool_call> that is none", (), "a <tool_call> that is none"),
        )

        def make_parser(self, tools):
            made = hermes(tools)
            return parser(made._notation)

    assert catches(Case, word)
