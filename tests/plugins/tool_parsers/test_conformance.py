"""The built-in tool parsers pass the conformance cases."""

from plugserve.plugins.tool_parsers.written_calls import plugserve_tool_parsers
from plugserve.testing import ToolExample, ToolParserConformance

CALL = '{"name": "f", "arguments": {"x": [1, {"y": "a}\\"]{"}], "z": null}}'
ARGUMENTS = {"x": [1, {"y": 'a}"]{'}], "z": None}


class _BuiltIn(ToolParserConformance):
    name = ""

    def make_parser(self, tools):
        return plugserve_tool_parsers()[self.name](tools)


class TestHermes(_BuiltIn):
    name = "hermes"
    examples = (
        ToolExample(f"<tool_call>\n{CALL}\n</tool_call>", [("f", ARGUMENTS)]),
        ToolExample(
            f'Let me see.\n\n<tool_call>{CALL}</tool_call><tool_call>{{"name": "g", "arguments": {{}}}}</tool_call>',
            [("f", ARGUMENTS), ("g", {})],
            "Let me see.",
        ),
    )


class TestLlama3Json(_BuiltIn):
    name = "llama3-json"
    examples = (ToolExample('<|python_tag|>{"name": "f", "parameters": {"x": 1}}', [("f", {"x": 1})]),)


class TestMistral(_BuiltIn):
    name = "mistral"
    examples = (
        ToolExample(f"[TOOL_CALLS] [{CALL}]", [("f", ARGUMENTS)]),
        ToolExample('ok [TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g{}', [("f", {"x": 1}), ("g", {})], "ok"),
    )


class TestPythonic(_BuiltIn):
    name = "pythonic"
    examples = (ToolExample("[f(x=1, y='a)]'), g()]", [("f", {"x": 1, "y": "a)]"}), ("g", {})]),)


class TestGenericJson(_BuiltIn):
    name = "generic-json"
    examples = (ToolExample(f"```json\n{CALL}\n```", [("f", ARGUMENTS)]),)
