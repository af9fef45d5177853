"""Stop strings are found wherever the text is cut, and nothing more than needed is held back."""

import itertools

import pytest

from plugserve.server.text.stop_strings import StopStrings


def run(stops, pieces, **options):
    search, shown = StopStrings(stops, **options), ""
    for piece in pieces:
        shown += search.feed(piece)
        if search.matched is not None:
            return shown, search.matched
    return shown + search.flush(), None


def cuts(text):
    """Every way to cut text into pieces."""
    for size in range(len(text)):
        for places in itertools.combinations(range(1, len(text)), size):
            edges = [0, *places, len(text)]
            yield [text[start:stop] for start, stop in itertools.pairwise(edges)]


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("abSTOPcd", ["STOP"], ("ab", "STOP")),
        ("abSTOcd", ["STOP"], ("abSTOcd", None)),
        ("aabaabc", ["aabc"], ("aab", "aabc")),
        ("hello wo", ["world", "o w"], ("hell", "o w")),
        ("xabcdy", ["bcd", "c"], ("xab", "c")),
        ("xabcy", ["bc", "abc"], ("x", "abc")),
        ("ababab", ["abac"], ("ababab", None)),
    ],
)
def test_the_same_match_however_the_text_is_cut(text, stops, expected):
    assert all(run(stops, pieces) == expected for pieces in cuts(text))


def test_only_a_possible_beginning_is_held_back():
    search = StopStrings(["\n\nUser"])
    assert search.feed("hello") == "hello"
    assert search.feed("\n") == ""
    assert search.feed("x\n\nUs") == "\nx"
    assert search.feed("age") == "\n\nUsage"


def test_stop_string_stays_in_the_text_when_included():
    assert run(["lo"], ["hel", "lo w"], is_included=True) == ("hello", "lo")


def test_text_without_stop_strings_passes_untouched():
    assert run([], ["a", "", "b"]) == ("ab", None)


@pytest.mark.parametrize("stop", ["aab", "aaaa", "abab", "abcabd", "x" * 1000 + "y"])
def test_held_text_is_the_longest_beginning_of_a_stop_string(stop):
    text = (stop[:-1] + stop[0]) * 2 + "ab"
    search = StopStrings([stop])
    for size, character in enumerate(text, 1):
        shown = search.feed(character)
        if search.matched is not None:
            break
        seen = text[:size]
        held = max(length for length in range(len(stop)) if length <= size and seen.endswith(stop[:length]))
        assert search._held == seen[size - held :]
        assert shown in ("", text[size - held - len(shown) : size - held])
