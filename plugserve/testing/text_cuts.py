"""Cuts texts into pieces, and malformed texts, for tool and reasoning parsers under test."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

MALFORMED: Sequence[str] = (
    "",
    " ",
    "\n\n",
    "The answer is 42.",
    "  indented\n\ttext with trailing space  \n",
    "x < y, y > z & [1, 2] {a: b} (c) `d` \"e\" 'f' \\g",
    '{"name": "f", "arguments": {"x": ',
    '{"name": 7, "arguments": [1]}',
    '[{"name": null}]',
    "[f(x=1), g(",
    "<tool_call>",
    "<tool_call></tool_call><tool_call>",
    "</tool_call></think><think>",
    "<|python_tag|>[TOOL_CALLS][ARGS]",
    "```json\n{}\n```",
    "\N{GRINNING FACE}\N{COMBINING ACUTE ACCENT}\u200d\ufeff\u2028 na\xefve \x00\x1b[0m",
    "{" * 3000,
    "[" * 3000,
    '{"a":' * 1500,
    "<" * 3000,
    "\\" * 999 + '"',
    "word " * 4000,
    '{"name": "f", "arguments": {"x": ' + "9" * 5000 + "}}",
)


def cuts(text: str, *, count: int = 20, seed: int = 0) -> Iterator[list[str]]:
    """The text as one piece, as characters, and cut at random count times, with empty pieces."""
    draw = random.Random(seed)
    yield [text]
    if len(text) <= 4000:
        yield list(text)
    for _ in range(count):
        edges = sorted(draw.randint(0, len(text)) for _ in range(draw.randint(1, 8)))
        yield [text[start:end] for start, end in itertools.pairwise([0, *edges, len(text)])]


def damaged(texts: Sequence[str], *, count: int = 60, seed: int = 0) -> Iterator[str]:
    """Texts that are truncated, miss, repeat or change a few characters, or are joined."""
    draw = random.Random(seed)
    texts = [text for text in texts if text] or ["text"]
    for text in texts:
        step = max(1, len(text) // 25)
        yield from (text[:end] for end in range(0, len(text), step))
    for _ in range(count):
        text = draw.choice(texts)
        at = draw.randrange(len(text))
        end = min(len(text), at + draw.randint(1, 6))
        damage = draw.choice(["", text[at:end] * 2, "".join(draw.sample('{}[]<>"\\,:()\n ', 3)), draw.choice(texts)])
        yield text[:at] + damage + text[end:]
