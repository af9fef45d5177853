"""No text in a message, an argument or an exception makes a log line of its own."""

import io
import logging
import unicodedata

import pytest

from plugserve.core.settings.log_setup import LineFormatter, escape_controls

FORGED = "2026-01-01 00:00:00 ERROR plugserve: forged"
HARMFUL = [
    *map(chr, range(0x20)),
    *map(chr, range(0x7F, 0xA0)),
    *"\u2028\u2029\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff",
    "\udc80",
]


@pytest.fixture
def logged():
    """logged(message, *arguments, **options) -> what the formatter writes."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(LineFormatter("%(levelname)s %(name)s: %(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)

    def log(message, *arguments, **options):
        logger.error(message, *arguments, **options)
        return written.getvalue()

    return log


@pytest.mark.parametrize("character", HARMFUL, ids=lambda character: f"{ord(character):04x}")
def test_control_characters_are_escaped_in_messages_arguments_and_exceptions(logged, character):
    text = logged(f"a{character}b %s", f"c{character}d", exc_info=ValueError(f"e{character}f"))
    if character != "\n":
        assert character not in text
    assert text.splitlines() == text.rstrip("\n").split("\n")
    assert len(text.splitlines()) == 2
    assert all(word in text for word in ("a\\", "c\\", "e\\"))


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_forged_line_stays_inside_the_line_that_contains_it(logged, line_end):
    error = ValueError(f"bad{line_end}{FORGED}")
    error.add_note(f"note{line_end}{FORGED}")
    text = logged("path=%s", f"x{line_end}{FORGED}", exc_info=error)
    assert not [line for line in text.splitlines() if line.lstrip().startswith("2026")]
    assert text.count("forged") == 3


def test_traceback_keeps_its_lines_and_shows_causes_and_groups(logged):
    def fail():
        try:
            raise KeyError(f"first\n{FORGED}")
        except KeyError as error:
            raise ExceptionGroup(f"second\n{FORGED}", [OSError(f"third\n{FORGED}")]) from error

    with pytest.raises(ExceptionGroup) as caught:
        fail()
    lines = logged("failed", exc_info=caught.value).splitlines()
    assert lines.count("Traceback (most recent call last):") == 2
    assert any(line.startswith('  File "') and line.endswith("in fail") for line in lines)
    assert 'raise KeyError(f"first\\n{FORGED}")' in [line.strip() for line in lines]
    order = [index for index, line in enumerate(lines) if FORGED in line]
    assert len(order) == 3
    assert "direct cause" in "\n".join(lines[order[0] : order[1]])
    assert lines[order[2]].startswith("  | OSError: third\\n")


def test_chain_of_exceptions_that_is_a_loop_or_long_ends(logged):
    error = ValueError("last")
    for number in range(200):
        following = ValueError(f"number {number}")
        following.__cause__ = error
        error = following
    assert len(logged("failed", exc_info=error).splitlines()) < 100


def test_ordinary_text_stays_as_it_is():
    text = 'héllo 世界 🙂 a=b "quoted" back\\slash é'
    assert escape_controls(text) == text
    assert all(unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Cs") for character in HARMFUL)
