"""Golden transcripts of each way to write tool calls; every split of a stream gives the same as the whole."""

import itertools
import json
import random

import pytest

from plugserve.plugins.tool_parsers.written_calls import plugserve_tool_parsers

CALL = '{"name": "f", "arguments": {"x": 1}}'
F, G = ("f", {"x": 1}), ("g", {})
TRANSCRIPTS = [
    ("hermes", f"<tool_call>\n{CALL}\n</tool_call>", "", [F]),
    (
        "qwen",
        f'Let me <see>.\n\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{{"name": "g", "arguments": {{}}}}',
        None,
        [F, G],
    ),
    ("hermes", f"<tool_call>[{CALL}]</tool_call>", "", [F]),
    ("hermes", "no call, a < b ", "no call, a < b ", []),
    ("hermes", "<tool_call>broken", "<tool_call>broken", []),
    ("llama3-json", '{"name": "f", "parameters": {"x": 1}}; {"name": "g", "parameters": {}}', "", [F, G]),
    ("llama3-json", '<|python_tag|>{"name": "f", "parameters": {"x": 1}}', "", [F]),
    ("llama3-json", '{"name": "Bob"}', '{"name": "Bob"}', []),
    ("mistral", f"[TOOL_CALLS] [{CALL}]", "", [F]),
    ("mistral", 'ok [TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g{}', "ok", [F, G]),
    ("mistral", "see [1] and [TOOL", "see [1] and [TOOL", []),
    ("pythonic", "[f(x=1), g()]", "", [F, G]),
    ("pythonic", "[1, 2]", "[1, 2]", []),
    ("generic-json", f"```json\n{CALL}\n```", "", [F]),
    ("generic-json", f"[{CALL}]", "", [F]),
    ("generic-json", "  plain text\n", "  plain text\n", []),
]


def parsed(name, pieces):
    parser = plugserve_tool_parsers()[name]()
    content = "".join(parser.feed(piece) for piece in pieces)
    last, calls = parser.finish()
    return content + last, [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize(("name", "text", "content", "calls"), TRANSCRIPTS)
def test_golden_transcripts(name, text, content, calls):
    expected = "Let me <see>." if content is None else content
    assert parsed(name, [text]) == (expected, calls)


@pytest.mark.parametrize(("name", "text", "content", "calls"), TRANSCRIPTS)
def test_every_split_parses_to_the_same_as_the_whole(name, text, content, calls):
    draw = random.Random(5)
    whole = parsed(name, [text])
    assert parsed(name, list(text)) == whole
    for _ in range(40):
        cuts = sorted(draw.sample(range(len(text) + 1), draw.randint(1, 6)))
        edges = [0, *cuts, len(text)]
        assert parsed(name, [text[a:b] for a, b in itertools.pairwise(edges)]) == whole
