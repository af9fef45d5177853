"""A bound answer ends before its limit, matches its grammar all the same, and is left alone where it ends by itself."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer

from plugserve.core.engine.closing_vocabulary import ClosingVocabulary
from plugserve.core.engine.grammar_closing import OpenText, greedy_completion
from plugserve.core.engine.structured_output import ConstraintCompiler
from plugserve.core.wire.messages import FINISH_COMPLETE, FINISH_LENGTH, FINISH_STOP
from plugserve.server.sandbox.grammar_process import after_thinking, grammar_text
from tests.core.engine.test_structured_output import EOS, VOCAB, byte_tokenizer, make_engine, text, wait_for_grammars

WORDS = {
    "type": "object",
    "properties": {"words": {"type": "array", "items": {"type": "string"}, "minItems": 50}, "note": {"type": "string"}},
    "required": ["words"],
    "additionalProperties": False,
}
ESSAY = {"type": "object", "properties": {"essay": {"type": "string"}}, "required": ["essay"]}


def answer_to(schema, max_tokens, **fields):
    engine, client = make_engine(**fields.pop("engine", {}))
    client.send(0, [1, 2], max_tokens, grammar=grammar_text("json", schema), **fields)
    wait_for_grammars(engine)
    client.run()
    return text(client.tokens[0]), client.finish[0], len(client.tokens[0])


@pytest.mark.parametrize("max_tokens", [40, 100, 300])
def test_rambling_answer_is_closed_in_time(max_tokens):
    answer, finish, num_tokens = answer_to(ESSAY, max_tokens)
    assert finish == FINISH_COMPLETE
    assert max_tokens - 16 - max_tokens // 10 <= num_tokens <= max_tokens, "it was closed too early"
    assert isinstance(json.loads(answer)["essay"], str)


def test_required_items_find_room():
    answer, finish, _ = answer_to(WORDS, 400)
    assert finish == FINISH_COMPLETE
    assert len(json.loads(answer)["words"]) >= 50


def test_limit_below_the_shortest_answer_cuts_off():
    _, finish, num_tokens = answer_to(WORDS, 60)
    assert (finish, num_tokens) == (FINISH_LENGTH, 60)


def test_narrowed_tokens_are_not_forced_past():
    _, finish, _ = answer_to(ESSAY, 60, allowed_token_ids=tuple(b'{"esay: x'))
    assert finish == FINISH_LENGTH


def test_closing_can_be_turned_off():
    compiler = ConstraintCompiler(byte_tokenizer, VOCAB, [EOS], closes_in_time=False)
    constraint = compiler.submit(grammar_text("json", ESSAY), 20).result()
    masks = compiler.empty_masks(1)
    for token in b'{"essay": "aaaaaaaaa':
        constraint.fill(masks[0])
        assert masks[0][token // 32] >> token % 32 & 1
        assert constraint.accept(token) is None
    constraint.fill(masks[0])
    assert bin(int.from_bytes(masks[0].tobytes(), "little")).count("1") > 50, "nothing is forced at the limit"


def test_answer_that_ends_by_itself_is_the_same_with_room_and_without():
    short = {"enum": [{"n": 1}, {"n": 2}, {"n": 3}]}
    assert answer_to(short, 80)[:2] == answer_to(short, 400)[:2]


@pytest.fixture(scope="module")
def tokenizer():
    return LLTokenizer(byte_tokenizer(), n_vocab=VOCAB, eos_token=[EOS])


def way_of(tokenizer, grammar, start=""):
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    assert matcher.consume_tokens(list(start.encode()))
    vocabulary = ClosingVocabulary(tokenizer, VOCAB, [EOS])
    completion, _ = greedy_completion(matcher, vocabulary, np.zeros(vocabulary.num_mask_words, np.uint32))
    return None if completion is None else start + text(completion)


@pytest.mark.parametrize(
    ("schema", "start", "shortest"),
    [
        ({"type": "object"}, "", "{}"),
        ({"type": "array", "items": {"type": "string"}}, '["a', '["a"]'),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 3}, "", "[1,1,1]"),
        ({"anyOf": [{"type": "object"}, {"type": "null"}]}, "", "null"),
        ({"type": "string", "format": "email"}, '"ada', '"ada@Z"'),
        ({"type": "string", "format": "time"}, "", '"11:11:11Z"'),
        ({"type": "string", "format": "duration"}, "", '"P1111'),
        ({"type": "string", "minLength": 6}, '"}', '"}'),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, "", "0.1"),
        ({"type": "string", "pattern": "^[a-z]+[0-9]+$"}, "", '"'),
    ],
)
def test_shortest_ways(tokenizer, schema, start, shortest):
    way = way_of(tokenizer, grammar_text("json", schema), start)
    assert way is not None
    assert way.startswith(shortest)
    json.loads(way)
    assert len(way) < 24


def test_recursive_schema_stops_nesting(tokenizer):
    either = {"anyOf": [{"$ref": "#"}, {"type": "null"}]}
    node = {"type": "object", "properties": {"next": either}, "required": ["next"]}
    assert way_of(tokenizer, grammar_text("json", node), '{"next": {"next": ') == '{"next": {"next": null}}'


def test_grammar_without_an_end_has_no_way(tokenizer):
    assert way_of(tokenizer, LLMatcher.grammar_from_regex("(ab){2000}")) is None


def test_thinking_in_plain_text_is_let_run(tokenizer):
    """Its closing mark is no token of its own here, so there is no way that the order knows; nothing breaks."""
    grammar = after_thinking(grammar_text("json", {"type": "object"}), "<think>", "</think>", True, ())
    with pytest.raises(OpenText):
        way_of(tokenizer, grammar, "hm")
    assert way_of(tokenizer, grammar, "hm</think>") == "hm</think>{}"


@pytest.mark.parametrize("num_thinking", [3, 60, 80])
def test_answer_after_thinking_is_closed_in_time(num_thinking):
    grammar = after_thinking(grammar_text("json", ESSAY), "<think>", "</think>", True, ())
    constraint = ConstraintCompiler(byte_tokenizer, VOCAB, [EOS]).submit(grammar, 140).result()
    mask = np.zeros(-(-VOCAB // 32), np.uint32)
    rambling = b"h" * num_thinking + b'</think>{"essay": "' + b"a" * 200
    said = bytearray()
    while not constraint.is_complete and len(said) < 140:
        constraint.fill(mask)
        allowed = [token for token in range(256) if mask[token // 32] >> token % 32 & 1]
        said.append(rambling[len(said)] if rambling[len(said)] in allowed else allowed[0])
        assert constraint.accept(said[-1]) is None
    assert constraint.is_complete
    assert isinstance(json.loads(said.partition(b"</think>")[2])["essay"], str)


@pytest.mark.parametrize(
    ("schema", "bounded"),
    [
        ({"type": "integer"}, True),
        ({"type": ["integer", "null"]}, True),
        ({"type": "integer", "minimum": 0}, False),
        ({"type": "integer", "enum": [2**60]}, False),
        ({"type": "number"}, False),
    ],
)
def test_integers_without_bounds_stay_exact(schema, bounded):
    wrapped = {"type": "object", "properties": {"minimum": schema}, "$defs": {"x": {"items": {"anyOf": [schema]}}}}
    grammar = grammar_text("json", {**wrapped, "required": ["minimum"]})
    assert (str(2**53 - 1) in grammar) == bounded
    assert "maximum" not in schema, "the client's schema was changed"


def regex_answer(expression, max_tokens):
    engine, client = make_engine()
    client.send(0, [1, 2], max_tokens, grammar=grammar_text("regex", expression))
    wait_for_grammars(engine)
    client.run()
    said = bytes(token for token in client.tokens[0] if token != EOS)
    return said.decode(errors="replace"), client.finish[0]


@pytest.mark.parametrize(
    "expression",
    [
        r"x(.*a.{12})",
        r"[a-z]+@[a-z]+\.com",
        ".*END",
        "(foo|bar|[a-z]{3,9} )*end",
        ".{0,500}x",
        "(a{20})+",
        r"\d+(,\d+)*;",
    ],
)
def test_expression_with_an_easy_end_is_ended(expression):
    answer, finish = regex_answer(expression, 60)
    assert finish in (FINISH_COMPLETE, FINISH_STOP)
    assert re.fullmatch(expression, answer), answer


def test_expression_without_room_is_cut_off():
    answer, finish = regex_answer("[a-z ]{1000}", 128)
    assert finish == FINISH_LENGTH
    assert len(answer) == 128


@pytest.mark.parametrize(
    ("schema", "most_tries"),
    [({"type": "array", "items": WORDS, "minItems": 200}, 40), (WORDS, 200)],
    ids=["no end was found before it began", "an end was found"],
)
def test_searches_of_an_answer_that_can_not_end_are_bounded(monkeypatch, schema, most_tries):
    tried = []

    def counted(*arguments):
        completion, num_tried = greedy_completion(*arguments)
        tried.append(num_tried)
        return completion, num_tried

    monkeypatch.setattr("plugserve.core.engine.grammar_closing.greedy_completion", counted)
    engine, client = make_engine()
    client.send(0, [1, 2], 100, grammar=grammar_text("json", schema))
    wait_for_grammars(engine)
    client.run()
    assert (client.finish[0], len(client.tokens[0])) == (FINISH_LENGTH, 100)
    assert sum(tried[1:]) <= most_tries, "the first search is made before the answer begins"


def test_first_token_of_the_vocabulary_can_be_taken(tokenizer):
    vocabulary = ClosingVocabulary(tokenizer, VOCAB, [EOS])
    mask = np.zeros(vocabulary.num_mask_words, np.uint32)
    assert vocabulary.first(mask) is None
    mask[0] = 1
    assert vocabulary.first(mask) in (0, None)
    mask[ord("a") // 32] |= 1 << ord("a") % 32
    assert vocabulary.first(mask) == ord("a")
    assert vocabulary.first(mask, avoided_token=ord("a")) in (0, ord("a"))
