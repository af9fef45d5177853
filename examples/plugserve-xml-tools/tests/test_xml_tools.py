"""The conformance cases for tool parsers on example answers, and cases for this parser alone."""

import json

import plugserve_xml_tools
import pytest
from plugserve_xml_tools.parser import XmlToolParser

from plugserve.testing import ToolExample, ToolParserConformance, load_plugin

CALL = "<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>3</parameter>\n</function>"


def tool(**types):
    properties = {name: {"type": kind} for name, kind in types.items()}
    return {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": properties}}}


def arguments(text, *tools):
    delta = XmlToolParser(tools).feed(text)
    return json.loads(delta.calls[0].arguments)


class TestXmlTools(ToolParserConformance):
    examples = (
        ToolExample(CALL, [("get_weather", {"city": "Paris", "days": "3"})]),
        ToolExample(
            f"I ask.{CALL} And: <function=f></function>",
            [("get_weather", {"city": "Paris", "days": "3"}), ("f", {})],
            "I ask. And: ",
        ),
        ToolExample("if a <function= b", (), "if a <function= b"),
        ToolExample("<function=f>what?</function>", (), "<function=f>what?</function>"),
        ToolExample(
            "<function=write><parameter=text>if a < b: '</p>' \\n {\"x\"}</parameter></function>",
            [("write", {"text": "if a < b: '</p>' \\n {\"x\"}"})],
        ),
    )

    def make_parser(self, tools):
        return plugserve_xml_tools.make_parser(tools)


def test_plugin_provides_the_parser():
    assert list(load_plugin(plugserve_xml_tools).provides["tool_parsers"]) == ["xml-tools"]


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("string", "3", "3"),
        ("integer", "3", 3),
        ("number", "-1.5e3", -1500.0),
        ("boolean", "\ntrue\n", True),
        ("object", '{"a": [1]}', {"a": [1]}),
        ("array", "[]", []),
        (["integer", "null"], "null", None),
        (["string", "null"], "null", "null"),
        ("integer", "three", "three"),
        (None, "3", "3"),
        ({"odd": 1}, "3", "3"),
    ],
)
def test_schema_decides_how_a_value_is_parsed(kind, text, value):
    written = f"<function=f><parameter=x>{text}</parameter></function>"
    assert arguments(written, tool(x=kind)) == {"x": value}


@pytest.mark.parametrize("odd", [{}, {"function": None}, {"function": {"name": 5}}, {"function": {"name": "f"}}])
def test_malformed_tools_are_accepted(odd):
    assert arguments("<function=f><parameter=x>3</parameter></function>", odd) == {"x": "3"}


def test_content_streams_up_to_what_may_be_a_call():
    parser = XmlToolParser([])
    assert [parser.feed(piece).content for piece in ("I a", "sk <", "b> <fun", "ny>")] == [
        "I a",
        "sk ",
        "<b> ",
        "<funny>",
    ]
