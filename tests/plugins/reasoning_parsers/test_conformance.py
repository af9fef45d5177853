"""The built-in reasoning parsers pass the conformance cases."""

from plugserve.plugins.reasoning_parsers.think_tags import plugserve_reasoning_parsers
from plugserve.testing import ReasoningExample, ReasoningParserConformance


class TestThinkTags(ReasoningParserConformance):
    examples = (ReasoningExample("<think>\na\n</think>\n\nb", "a", "b"),)

    def make_parser(self, answer_prefix):
        return plugserve_reasoning_parsers()["think-tags"](answer_prefix)


class TestDeepSeekR1(ReasoningParserConformance):
    examples = (ReasoningExample("a\n</think>\n\nb", "a", "b"),)

    def make_parser(self, answer_prefix):
        return plugserve_reasoning_parsers()["deepseek-r1"](answer_prefix)
