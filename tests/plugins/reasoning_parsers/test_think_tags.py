"""Golden transcripts of thinking; every split of a stream gives the same result as the whole."""

import itertools
import random

import pytest

from plugserve.plugins.reasoning_parsers.think_tags import plugserve_reasoning_parsers

OPEN, CLOSED = "<|im_start|>assistant\n<think>\n", "<|im_start|>assistant\n<think>\n\n</think>\n\n"
TRANSCRIPTS = [
    # name, what the prompt holds of the answer, text, thinking, content
    ("think-tags", "", "<think>\nhm, a < b\n</think>\n\nYes.\n", "hm, a < b", "Yes.\n"),
    ("think-tags", OPEN, "hm\n\nhm\n</think>\n\nYes.", "hm\n\nhm", "Yes."),
    ("think-tags", OPEN, "\n</think>\n\nYes.", "", "Yes."),
    ("think-tags", OPEN, "not done yet </thi", "not done yet </thi", ""),
    ("think-tags", OPEN, "not done yet\n", "not done yet", ""),
    ("think-tags", OPEN, "", "", ""),
    ("think-tags", CLOSED, "Yes, <think> is a tag.", "", "Yes, <think> is a tag."),
    ("think-tags", "", "Yes.", "", "Yes."),
    ("think-tags", "", "\n\nYes. ", "", "\n\nYes. "),
    ("think-tags", "", "a < b <th", "", "a < b <th"),
    ("think-tags", "", "Let me see. <think>hm</think> Yes.", "hm", "Let me see.\nYes."),
    ("think-tags", "", " \n<think>hm</think>Yes. <think>no</think>", "hm", "Yes. <think>no</think>"),
    ("think-tags", "", "<think>\n\n</think>\n\nYes.", "", "Yes."),
    ("think-tags", "the user asked about <think>", "hm</think>Yes.", "hm", "Yes."),
    ("qwen3", OPEN, "hm</think>Yes.", "hm", "Yes."),
    ("deepseek-r1", "<|Assistant|>", "hm</think>Yes.", "hm", "Yes."),
    ("deepseek-r1", CLOSED, "Yes.", "", "Yes."),
    ("deepseek-r1", "<|Assistant|>", "<think>\nhm</think>Yes.", "hm", "Yes."),
]


def parsed(name, answer_prefix, pieces):
    parser = plugserve_reasoning_parsers()[name](answer_prefix)
    returned = [*(parser.feed(piece) for piece in pieces), parser.finish()]
    return tuple("".join(part) for part in zip(*returned, strict=True))


@pytest.mark.parametrize(("name", "answer_prefix", "text", "thinking", "content"), TRANSCRIPTS)
def test_golden_transcripts(name, answer_prefix, text, thinking, content):
    assert parsed(name, answer_prefix, [text]) == (thinking, content)


@pytest.mark.parametrize(("name", "answer_prefix", "text", "thinking", "content"), TRANSCRIPTS)
def test_every_split_parses_to_the_same_as_the_whole(name, answer_prefix, text, thinking, content):
    draw = random.Random(7)
    assert parsed(name, answer_prefix, list(text)) == (thinking, content)
    for _ in range(40):
        cuts = sorted(draw.sample(range(len(text) + 1), min(draw.randint(1, 6), len(text))))
        edges = [0, *cuts, len(text)]
        pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
        assert parsed(name, answer_prefix, pieces) == (thinking, content)


@pytest.mark.parametrize("answer_prefix", ["", OPEN, CLOSED])
def test_splits_of_malformed_text_parse_to_the_same_as_the_whole(answer_prefix):
    draw = random.Random(answer_prefix)
    words = ["<think>", "</think>", "<", "</", "think>", " ", "\n", "a", "é"]
    for _ in range(500):
        text = "".join(draw.choices(words, k=draw.randint(1, 12)))
        assert parsed("think-tags", answer_prefix, list(text)) == parsed("think-tags", answer_prefix, [text]), text


def test_thinking_is_streamed():
    parser = plugserve_reasoning_parsers()["think-tags"]("")
    assert parser.may_think
    assert parser.feed("<think>\n") == ("", "")
    assert parser.is_thinking
    assert parser.feed("let me ") == ("let me", "")  # the space may stand before the end
    assert parser.feed("see</") == (" see", "")
    assert parser.feed("think>\n\nYes") == ("", "Yes")
    assert not parser.is_thinking
    assert not parser.may_think
