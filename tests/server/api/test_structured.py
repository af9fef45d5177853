"""response_format and structured_outputs: what reaches the engine, and what is refused before it."""

import asyncio
import json
import re
import signal
import time

import pytest
from llguidance import LLMatcher, LLTokenizer

from plugserve.core.errors import RequestError
from plugserve.server.text.grammars import MAX_SOURCE_BYTES, GrammarCompiler, GrammarSource

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def json_schema(schema=SCHEMA, **fields):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **fields}}


def accepts(tokenizer, grammar, text):
    """Whether text is a whole answer of grammar."""
    matcher = LLMatcher(LLTokenizer(tokenizer.to_str(), eos_token=1), grammar)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("fields", "good", "bad"),
    [
        ({"response_format": json_schema()}, ['{"a": 5}', '{"a":5}', '{\n  "a": 5\n}'], ["{}", '{"a": "x"}', "x"]),
        ({"response_format": json_schema(strict=True)}, ['{"a": 5}'], ["{}"]),
        ({"response_format": {"type": "json_object"}}, ["{}", '{"x": [1, {"y": null}]}'], ["[]", "5", "{"]),
        ({"structured_outputs": {"json": SCHEMA}}, ['{"a": 5}'], ["{}"]),
        ({"structured_outputs": {"json": json.dumps(SCHEMA), "regex": None}}, ['{"a": 5}'], ["{}"]),
        ({"structured_outputs": {"json_object": True}}, ["{}"], ["[]"]),
        ({"structured_outputs": {"regex": "a/b|[0-9]{2}"}}, ["a/b", "42"], ["a", "4"]),
        ({"structured_outputs": {"choice": ["yes", 'n"o\n', "/é"]}}, ["yes", 'n"o\n', "/é"], ["", "ye", "maybe"]),
        ({"structured_outputs": {"grammar": 'start: "a" B\nB: /[0-9]+/'}}, ["a12"], ["a", "12"]),
        ({"structured_outputs": {"grammar": 'root ::= "a" num\nnum ::= [0-9]+'}}, ["a12"], ["a", "12"]),
    ],
)
async def test_grammar_reaches_the_engine(server, tokenizer, fields, good, bad):
    for ask in (server.chat, server.complete):
        assert (await ask(**fields)).status_code == 200
        grammar = server.engine.calls[-1].params.grammar
        assert [accepts(tokenizer, grammar, text) for text in (*good, *bad)] == [True] * len(good) + [False] * len(bad)
    await server.chat_events(**fields, n=2)
    assert {call.params.grammar for call in server.engine.calls} == {grammar}


@pytest.mark.parametrize("fields", [{}, {"response_format": {"type": "text"}}, {"structured_outputs": None}])
async def test_free_text_has_no_grammar(server, fields):
    await server.chat(**fields)
    assert server.engine.calls[0].params.grammar == ""


def nested(depth):
    schema = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"response_format": "json"}, "response_format: must be an object"),
        ({"response_format": {"type": "grammar"}}, "response_format.type: must be one of"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema: must be an object"),
        ({"response_format": json_schema(None)}, "response_format.json_schema.schema: must be an object"),
        ({"response_format": json_schema(strict="yes")}, "response_format.json_schema.strict"),
        ({"response_format": json_schema({"type": "foo"})}, "Invalid type: foo"),
        ({"response_format": json_schema({"$ref": "#/nope"})}, "'/nope' does not exist"),
        ({"response_format": json_schema({"not": {}})}, "Unimplemented keys"),
        ({"response_format": json_schema(nested(200))}, "recursion limit|nests too deeply"),
        ({"response_format": json_schema({"enum": ["x" * MAX_SOURCE_BYTES]})}, "at most 65536 are allowed"),
        ({"structured_outputs": {}}, "needs exactly one of json, regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "needs exactly one .* got regex, choice"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag: not supported"),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex: .*unclosed group"),
        ({"structured_outputs": {"regex": "(?=a)b"}}, "look-around"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex: must be a non-empty string"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice: must be a list"),
        ({"structured_outputs": {"choice": ["a", 5]}}, "structured_outputs.choice: must be a list"),
        ({"structured_outputs": {"grammar": "start: foo"}}, 'unknown name: "foo"'),
        ({"structured_outputs": {"grammar": "root ::= ((("}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json: is not valid JSON"),
        ({"structured_outputs": {"json": SCHEMA}, "response_format": {"type": "json_object"}}, "can't be combined"),
    ],
)
async def test_what_gives_no_grammar_is_refused_before_the_engine(server, fields, told):
    for ask in (server.chat, server.complete):
        response = await ask(**fields)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] in fields
        assert error["message"].startswith(error["param"])
        assert "\n" not in error["message"]
        assert re.search(told, error["message"]), error["message"]
    assert not server.engine.calls


async def test_a_slow_grammar_is_killed_and_the_next_one_answered(tokenizer):
    compiler = GrammarCompiler(tokenizer.to_str(), timeout_s=0.3)
    good = GrammarSource("regex", "a+", "structured_outputs.regex")
    await compiler.compile(good)
    child = compiler._sandbox.process
    child.send_signal(signal.SIGSTOP)  # the slowest there is
    started = time.monotonic()
    with pytest.raises(RequestError, match=r"structured_outputs.regex: .* took longer than 0.3 s") as caught:
        await compiler.compile(GrammarSource("regex", "b+", "structured_outputs.regex"))
    assert caught.value.param == "structured_outputs"
    assert time.monotonic() - started < 10
    assert child.returncode is not None
    assert "b+" in await compiler.compile(GrammarSource("regex", "b+", "structured_outputs.regex"))
    await compiler.close()


async def test_many_requests_share_one_compilation_process(tokenizer):
    compiler = GrammarCompiler(tokenizer.to_str())
    sources = [GrammarSource("regex", f"a{{{index}}}", "structured_outputs.regex") for index in range(1, 30)]
    grammars = await asyncio.gather(*(compiler.compile(source) for source in sources))
    assert len(set(grammars)) == len(sources)
    await compiler.close()
    assert await compiler.compile(sources[0]) == grammars[0]  # remembered, although the process is gone
