"""What parsers of a plugin take is told once an answer."""

from plugserve.plugins.reasoning_parsers.think_tags import ThinkTags
from plugserve.plugins.tool_parsers.hermes import hermes
from plugserve.server.text.answer_parsers import AnswerParsers


def test_time_of_an_answers_parsers_is_told_when_it_ends():
    told = []
    parsers = AnswerParsers(
        tools=hermes,
        reasoning=ThinkTags,
        tool_plugin="calls",
        reasoning_plugin="thoughts",
        report_time=lambda plugin, hook, seconds: told.append((plugin, hook, seconds)),
    )
    tools, reasoning = parsers.new_tools([]), parsers.new_reasoning("")
    for parser in (reasoning, tools):
        for _ in range(50):
            parser.feed("some words ")
        assert not told or parser is tools
        parser.finish()
    assert [(plugin, hook) for plugin, hook, _ in told] == [
        ("thoughts", "plugserve_reasoning_parsers"),
        ("calls", "plugserve_tool_parsers"),
    ]
    assert all(seconds > 0 for *_, seconds in told)
