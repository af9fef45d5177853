"""Keys and values of a JSON text are counted without parsing it."""

from __future__ import annotations

import json
import random

import pytest

from plugserve.server.api.json_size import count_at_most, count_exactly

MAX_VALUES = 200_000
MAX_KEYS = 25_000

TEXTS = ("", "plain", 'quoted "text"', "back\\slash", '\\"', "a, b: [c] {d}", '\\\\",:', "ünïcode ❄", "\\" * 7 + '"')


def random_value(rng, depth=4):
    kind = rng.randrange(6) if depth else rng.randrange(3)
    if kind == 0:
        return rng.choice(TEXTS)
    if kind < 3:
        return rng.choice((1, -2.5, None, True, 10**30))
    if kind < 5:
        return [random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {rng.choice(TEXTS) + str(i): random_value(rng, depth - 1) for i in range(rng.randrange(4))}


def num_keys(value):
    if isinstance(value, dict):
        return len(value) + sum(map(num_keys, value.values()))
    return sum(map(num_keys, value)) if isinstance(value, list) else 0


def num_leaves(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(num_leaves, inner)) if inner else 1


@pytest.mark.parametrize("seed", range(200))
def test_counts_are_those_of_the_parsed_text(seed):
    rng = random.Random(seed)
    value = {"top": random_value(rng), "more": random_value(rng)}
    body = json.dumps(value, indent=rng.choice((None, 1)), ensure_ascii=rng.random() < 0.5).encode()
    counted, most = count_exactly(body), count_at_most(body)
    assert counted.num_keys == num_keys(value)
    assert counted.num_values >= num_leaves(value)
    assert most.num_keys >= counted.num_keys
    assert most.num_values >= counted.num_values


def test_separators_in_a_long_text_count_for_nothing():
    body = json.dumps({"prompt": 'He said: "one, two\\", {three}: [four]. ' * 100_000}).encode()
    assert not count_at_most(body).is_within(MAX_VALUES)
    assert count_exactly(body).is_within(10)


@pytest.mark.parametrize(
    "value", [{str(i): 0 for i in range(MAX_KEYS + 1)}, list(range(MAX_VALUES + 1)), [{"a": 0}] * (MAX_KEYS + 1)]
)
def test_too_many_keys_or_values_are_seen(value):
    assert not count_exactly(json.dumps({"x": value}).encode()).is_within(MAX_VALUES)


@pytest.mark.parametrize("body", [b"", b'"', b"\\", b'{"a', b"[" * 1000, b'\\"\\"', b"\xff\xfe,"])
def test_texts_that_are_no_json_are_counted_too(body):
    assert count_exactly(body).num_values >= 0
