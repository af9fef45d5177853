"""The text that completes a match is a match, none is shorter, and its tokens spell it."""

from __future__ import annotations

import itertools
import json
import random
import re

import pytest
from llguidance import LLMatcher

from plugserve.core.engine.shortest_match import PartialMatch, Speller, UnsupportedExpression, expression_of

ALPHABET = "abc"


def random_expression(rng, depth=3):
    kind = rng.randrange(7) if depth else rng.randrange(3)
    if kind < 2:
        return rng.choice(ALPHABET)
    if kind == 2:
        return rng.choice(("[ab]", "[^a]", "."))
    inner = [random_expression(rng, depth - 1) for _ in range(2)]
    if kind == 3:
        return "".join(inner)
    if kind == 4:
        return f"(?:{inner[0]}|{inner[1]})"
    return f"(?:{inner[0]})" + rng.choice(("*", "+", "?", "{2}", "{1,3}", "{2,}"))


def shortest_by_trying(expression, start, longest):
    matches = re.compile(expression).fullmatch
    for length in range(longest + 1):
        if any(matches(start + "".join(rest)) for rest in itertools.product(ALPHABET, repeat=length)):
            return length
    return None


@pytest.mark.parametrize("seed", range(60))
def test_no_text_that_completes_a_match_is_shorter(seed):
    rng = random.Random(seed)
    expression = random_expression(rng)
    for start in ("", "a", "ab", "cba"):
        partial = PartialMatch(expression)
        partial.feed(start.encode())
        found, tried = partial.num_missing, shortest_by_trying(expression, start, 6)
        if tried is None:
            assert found is None or found > 6, (expression, start)
        else:
            assert found == tried, (expression, start)


@pytest.mark.parametrize("seed", range(60))
def test_missing_classes_complete_a_match(seed):
    rng = random.Random(seed)
    expression = random_expression(rng)
    partial = PartialMatch(expression)
    partial.feed(b"a")
    if partial.num_missing is not None:
        classes = partial.missing()
        assert len(classes) == partial.num_missing
        rest = "".join(next(letter for letter in ALPHABET if re.fullmatch(one, letter)) for one in classes)
        assert re.fullmatch(expression, "a" + rest)


def test_character_counts_once_all_its_bytes_are_there():
    partial = PartialMatch("é+x")
    first, second = "é".encode()[:1], "é".encode()[1:]
    partial.feed(first)
    assert partial.num_missing == 2
    partial.feed(second)
    assert partial.num_missing == 1


def test_text_that_can_not_match_leaves_nothing():
    partial = PartialMatch("ab*")
    partial.feed(b"b")
    assert partial.num_missing is None


@pytest.mark.parametrize("expression", [r"(a)\1", r"(?=a)b", r"\bword", "a{30000}", "(", r"\p{L}"])
def test_expressions_beyond_it_are_refused_by_one_error(expression):
    with pytest.raises(UnsupportedExpression):
        PartialMatch(expression)


def test_expression_with_too_many_ways_at_once_is_given_up():
    partial = PartialMatch("(a|aa){0,400}b")
    with pytest.raises(UnsupportedExpression):
        partial.feed(b"a" * 1000)


@pytest.mark.parametrize("expression", ["a/b", r"x(.*a.{12})", "line\nend", r"\d+/\\", "é\"'"])
def test_expression_is_read_back_from_llguidances_text(expression):
    read = expression_of(LLMatcher.grammar_from_regex(expression))
    assert read is not None
    assert re.compile(read).pattern
    for text in ("a/b", "xaaaaaaaaaaaaa", "line\nend", "12/\\", "é\"'"):
        assert bool(re.fullmatch(read, text)) == bool(re.fullmatch(expression, text))


def test_other_grammars_have_no_expression():
    assert expression_of(LLMatcher.grammar_from_json_schema({"type": "object"})) is None
    assert expression_of("start: /a/") is None
    two = json.dumps({"grammars": [{"lark_grammar": "start: /a/ @b"}, {"name": "b", "lark_grammar": "start: /b/"}]})
    assert expression_of(two) is None


def spelt(texts, classes):
    tokens = Speller(texts).spell(classes)
    return None if tokens is None else [texts[token] for token in tokens]


def test_long_tokens_spell_runs_of_a_class():
    texts = ["", "a", "ab", "abcab", "1", "ab1"]
    assert spelt(texts, ["[a-c]"] * 7) == ["abcab", "ab"]
    assert spelt(texts, ["[a-c]", "[0-9]"]) == ["a", "1"]


def test_neighbours_are_joined_where_one_token_spells_both():
    assert spelt(["e", "n", "d", "en", "end"], ["e", "n", "d"]) == ["end"]


def test_class_without_a_token_can_not_be_spelt():
    assert spelt(["a", "b"], ["a", "[0-9]"]) is None
