"""Golden transcripts of each tool call format; every split of a stream gives the same result as the whole."""

import itertools
import json
import random

import pytest

from plugserve.plugins.tool_parsers.written_calls import plugserve_tool_parsers

CALL = '{"name": "f", "arguments": {"x": 1}}'
F, G = ("f", '{"x": 1}'), ("g", "{}")
NESTED = '{"name": "f", "arguments": {"x": [1, {"y": "a}\\"]{"}, "\\u00e9"], "z": null, "t": -1.5e3}}'
NESTED_CALL = ("f", '{"x": [1, {"y": "a}\\"]{"}, "\\u00e9"], "z": null, "t": -1.5e3}')
TRANSCRIPTS = [
    ("hermes", f"<tool_call>\n{CALL}\n</tool_call>", "", [F]),
    ("hermes", f"<tool_call>{NESTED}</tool_call>", "", [NESTED_CALL]),
    (
        "qwen",
        f'Let me <see>.\n\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{{"name": "g", "arguments": {{}}}}',
        "Let me <see>.",
        [F, G],
    ),
    ("hermes", f"<tool_call>[{CALL}]</tool_call>", "", [F]),
    ("hermes", f"<tool_call>{CALL}</tool_call>\n\nDone. ", "Done. ", [F]),
    ("hermes", f"First.\n<tool_call>{CALL}</tool_call>\n\nThen.", "First.\nThen.", [F]),
    ("hermes", '<tool_call>{"arguments": {"x": 1}, "id": 5, "name": "f"}</tool_call>', "", [F]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>', "", [F]),
    ("hermes", '<tool_call>{"name": "g", "arguments": null}</tool_call>', "", [G]),
    ("hermes", '<tool_call>{"name": "g"}</tool_call>', "", [G]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": "a\nb"}}</tool_call>', "", [("f", '{"x": "a\\nb"}')]),
    ("hermes", "no call, a < b ", "no call, a < b ", []),
    ("hermes", "<tool_call>broken", "<tool_call>broken", []),
    ("hermes", "<tool_call></tool_call>", "<tool_call></tool_call>", []),
    ("hermes", f"<tool_call>broken <tool_call>{CALL}</tool_call>", "<tool_call>broken", [F]),
    ("hermes", '<tool_call>{"name": 5, "arguments": {}}', '<tool_call>{"name": 5, "arguments": {}}', []),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": tru', "", [("f", '{"x": ')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": oh}}', "oh}}", [("f", '{"x": ')]),
    ("hermes", '<tool_call>{"name": "f", "argum', '<tool_call>{"name": "f", "argum', []),
    ("llama3-json", '{"name": "f", "parameters": {"x": 1}}; {"name": "g", "parameters": {}}', "", [F, G]),
    ("llama3-json", '<|python_tag|>{"name": "f", "parameters": {"x": 1}}', "", [F]),
    ("llama3-json", '{"type": "function", "name": "f", "parameters": {"x": 1}}', "", [F]),
    ("llama3-json", '{"name": "Bob"}', '{"name": "Bob"}', []),
    ("llama3-json", '{"name": "Bob", "parameters": 5} ', '{"name": "Bob", "parameters": 5} ', []),
    ("llama3-json", f"I say {CALL}", f"I say {CALL}", []),
    ("mistral", f"[TOOL_CALLS] [{CALL}]", "", [F]),
    ("mistral", f'[TOOL_CALLS][{CALL}, {{"name": "g", "arguments": {{}}}}]', "", [F, G]),
    ("mistral", 'ok [TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g{}', "ok", [F, G]),
    ("mistral", '[TOOL_CALLS]f[CALL_ID]9xYz[ARGS]{"x": 1}', "", [F]),
    ("mistral", "[TOOL_CALLS]oh no {}", "[TOOL_CALLS]oh no {}", []),
    ("mistral", "see [1] and [TOOL", "see [1] and [TOOL", []),
    ("pythonic", "[f(x=1), g()]", "", [F, G]),
    ("pythonic", '[ns.f(a="x)]", b=[1, (2, 3)], c={"d": None})]', "", [("ns.f", None)]),
    ("pythonic", "[1, 2]", "[1, 2]", []),
    ("pythonic", "[f(x=y)]", "[f(x=y)]", []),
    ("pythonic", "[f(1)]", "[f(1)]", []),
    ("pythonic", "[f)]", "[f)]", []),
    ("pythonic", "[f(x='a", "[f(x='a", []),
    ("pythonic", "[", "[", []),
    ("generic-json", f"```json\n{CALL}\n```", "", [F]),
    ("generic-json", f"```\n{CALL}\n```\nThat was it.", "That was it.", [F]),
    ("generic-json", f"[{CALL}]", "", [F]),
    ("generic-json", f"\n {CALL}", "", [F]),
    ("generic-json", "  plain text\n", "  plain text\n", []),
    ("generic-json", "```python\nprint(1)\n```", "```python\nprint(1)\n```", []),
    ("generic-json", '{"city": "Paris", "size": [1, 2]}\n', '{"city": "Paris", "size": [1, 2]}\n', []),
    ("generic-json", " \n ", " \n ", []),
]


def parsed(name, pieces):
    """(content, calls) of a stream; a call's name comes once, with its first delta."""
    parser = plugserve_tool_parsers()[name]([])
    deltas = [*(parser.feed(piece) for piece in pieces), parser.finish()]
    calls = []
    for call in (call for delta in deltas for call in delta.calls):
        if call.index == len(calls):
            assert call.name
            calls.append([call.name, call.arguments])
        else:
            assert (call.index, call.name) == (len(calls) - 1, None)
            calls[-1][1] += call.arguments
    return "".join(delta.content for delta in deltas), [tuple(call) for call in calls]


@pytest.mark.parametrize(("name", "text", "content", "calls"), TRANSCRIPTS)
def test_golden_transcripts(name, text, content, calls):
    returned, found = parsed(name, [text])
    assert returned == content
    assert [call[0] for call in found] == [call[0] for call in calls]
    for (_, arguments), (_, expected) in zip(found, calls, strict=True):
        assert arguments == expected if expected is not None else json.loads(arguments)


@pytest.mark.parametrize("name", sorted(plugserve_tool_parsers()))
def test_every_parser_has_transcripts_with_and_without_calls(name):
    alike = {"qwen": "hermes"}
    kinds = {bool(calls) for other, _, _, calls in TRANSCRIPTS if alike.get(other, other) == alike.get(name, name)}
    assert kinds == {True, False}


@pytest.mark.parametrize(("name", "text", "content", "calls"), TRANSCRIPTS)
def test_every_split_parses_to_the_same_as_the_whole(name, text, content, calls):
    draw = random.Random(5)
    whole = parsed(name, [text])
    assert parsed(name, list(text)) == whole
    for at in range(len(text)):
        assert parsed(name, [text[:at], text[at:]]) == whole
    for _ in range(40):
        cuts = sorted(draw.sample(range(len(text) + 1), min(draw.randint(1, 6), len(text))))
        edges = [0, *cuts, len(text)]
        assert parsed(name, [text[a:b] for a, b in itertools.pairwise(edges)]) == whole


@pytest.mark.parametrize("name", sorted(plugserve_tool_parsers()))
def test_splits_of_malformed_text_parse_to_the_same_as_the_whole_and_lose_nothing(name):
    draw = random.Random(name)
    marks = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "```", "json", "<|python_tag|>", *'{}[]()",:;\\']
    words = ['"name"', '"arguments"', '"f"', "f", "x=1", "1", "null", "é", " ", "\n", "'", "{}", CALL, *marks]
    for _ in range(400):
        text = "".join(draw.choices(words, k=draw.randint(1, 14)))
        whole = parsed(name, [text])
        assert parsed(name, list(text)) == whole, text
        if not whole[1]:
            assert whole[0] == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", "<tool_call>" + CALL),
        ("llama3-json", CALL),
        ("mistral", "[TOOL_CALLS]" + 'f[ARGS]{"x": 1}'),
        ("generic-json", CALL),
    ],
)
def test_name_and_arguments_are_returned_as_soon_as_they_are_certain(name, text):
    parser = plugserve_tool_parsers()[name]([])
    opening, _, rest = text.partition('{"x": 1')
    assert not parser.feed(opening).calls
    (first,) = parser.feed("{").calls
    assert (first.index, first.name, first.arguments) == (0, "f", "{")
    (second,) = parser.feed('"x": 1').calls
    assert (second.name, second.arguments) == (None, '"x": ')  # a number may go on
    (third,) = parser.feed(rest).calls
    assert (third.name, third.arguments) == (None, "1}")


def test_pythonic_call_is_returned_when_it_is_complete():
    parser = plugserve_tool_parsers()["pythonic"]([])
    assert not parser.feed("[f(x=").calls
    (call,) = parser.feed("1), g(").calls
    assert (call.name, call.arguments) == ("f", '{"x": 1}')


def test_long_arguments_take_linear_work():
    parser = plugserve_tool_parsers()["hermes"]([])
    parser.feed('<tool_call>{"name": "f", "arguments": {"x": "')
    returned = [parser.feed("abc\n").calls[0].arguments for _ in range(20_000)]
    assert set(returned) == {"abc\\n"}
