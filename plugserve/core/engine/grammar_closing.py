"""How an answer that is bound to a grammar can end in time: the shortest way from where it stands to a complete answer.

A small model may go on in a string or a number until max_tokens, and a broken-off JSON text is of no use. So while
there is still room, the shortest way to the end is looked up now and then; when the tokens that are left just suffice
for it, the answer takes it. What comes out matches the grammar all the same.
Knows tokens and matchers, nothing of sequences.

The way is found greedily, with the order of preference that JSON suggests: close what is open, leave out what may be
left out, and where something must come take null, a digit or an empty string before an array or an object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_LONGEST_WAY: Final = 512  # tokens
_LONGEST_RUN: Final = 4  # of words or digits, where something else may follow as well
_NEVER: Final = 255
_LEAST_RANK: Final = 10  # closers stand below
_DIGITS: Final = range(60, 62)
_WORDS: Final = range(62, 80)
_BEFORE_WORDS: Final = (b'"', b",", b":", b"@", b"null", b"Z", b"true", b"false")
_RANKS: Final = {token: 10 + rank for rank, token in enumerate(_BEFORE_WORDS)} | {b"[": 120, b"{": 121}
_PROBE: Final = b"~"  # where it may come, a string's text stands, of which brackets may be a part
_CLOSERS: Final = frozenset(b"}]")


class OpenText(Exception):
    """Here the answer stands in a text that no quotation mark ends, thinking for one; after it there may be a way."""


class ClosingOrder:
    """Ranks of a vocabulary's tokens for an answer that has to end; lower comes first.

    There are two, since inside a free string any bracket is just text and only a quotation mark ends it.
    """

    def __init__(self, tokenizer: LLTokenizer, vocab_size: int, eos_ids: list[int]) -> None:
        self.eos_id = eos_ids[0] if eos_ids else None
        self.num_mask_words = -(-vocab_size // 32)
        self._in_structure = np.full(vocab_size, _NEVER, np.uint8)
        self._in_text = np.full(vocab_size, _NEVER, np.uint8)
        self._probe: int | None = None
        self._closing_quotes: set[int] = set()
        for token in range(min(vocab_size, tokenizer.vocab_size)):
            if tokenizer.is_special_token(token):
                self._in_text[token] = 0 if token not in eos_ids else _NEVER
                continue
            spelt = tokenizer.decode_bytes([token])
            if spelt:
                self._in_structure[token], self._in_text[token] = _structure_rank(spelt), _text_rank(spelt)
            if self._in_text[token] < _LEAST_RANK and spelt:
                self._closing_quotes.add(token)
            if spelt == _PROBE:
                self._probe = token

    def best(self, mask: np.ndarray[Any, np.dtype[np.uint32]], worn: range) -> tuple[int, int] | None:
        """The allowed token that comes first, and its rank. mask holds bit t for token t; ranks in worn come last."""
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(self._in_text)].astype(bool)
        is_text = self._probe is not None and bits[self._probe]
        ranks = np.where(bits, self._in_text if is_text else self._in_structure, _NEVER)
        if worn:
            ranks = np.where((ranks >= worn.start) & (ranks < worn.stop), ranks + 100, ranks)
        token = int(ranks.argmin())
        return (token, int(ranks[token])) if bits[token] else None

    def ends_text(self, token: int, rank: int) -> bool:
        """The token was taken to end a string; in any other place its rank is another one."""
        return rank < _LEAST_RANK and token in self._closing_quotes


def _structure_rank(spelt: bytes) -> int:
    if _CLOSERS.issuperset(spelt):
        return 9 - min(len(spelt), 8)
    if spelt in _RANKS:
        return _RANKS[spelt]
    return 130 if spelt[:1].isspace() else _word_rank(spelt)


def _text_rank(spelt: bytes) -> int:
    if spelt.startswith(b'"') and _CLOSERS.issuperset(spelt[1:]):
        return 9 - min(len(spelt), 8)
    return _RANKS[spelt] if spelt == b"@" else _word_rank(spelt)


def _word_rank(spelt: bytes) -> int:
    """One digit (0 last, else 0.000 would not end), then words, long ones first: a key ends in fewer tokens."""
    if spelt.isdigit():
        return _DIGITS[spelt == b"0"] if len(spelt) == 1 else 140
    if spelt.isalpha() and spelt.isascii():
        return _WORDS[-min(len(spelt), len(_WORDS))]
    return 90 if len(spelt) == 1 else 140


def shortest_way(
    matcher: LLMatcher, order: ClosingOrder, mask: np.ndarray[Any, np.dtype[np.uint32]]
) -> list[int] | None:
    """Tokens that end the answer from where matcher stands (which stays there), or None where none are found.
    mask is scratch space for one row. Raises OpenText."""
    copy = matcher.deep_copy()
    way: list[int] = []
    kind, run = range(0), 0  # of the last tokens: digits or words, and how many
    has_ended_text = False
    while len(way) <= _LONGEST_WAY and not copy.is_error():
        if copy.is_stopped():
            return way
        if copy.is_accepting():
            return None if order.eos_id is None else [*way, order.eos_id]
        tokens = copy.compute_ff_tokens()
        if not tokens:
            copy.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            best = order.best(mask, kind if run >= _LONGEST_RUN else range(0))
            if best is None:
                return None
            now = next((some for some in (_DIGITS, _WORDS) if best[1] in some), range(0))
            kind, run = now, run + 1 if now is kind else 1
            if has_ended_text and order.ends_text(*best):
                raise OpenText
            has_ended_text = order.ends_text(*best)
            tokens = [best[0]]
        if not copy.consume_tokens(tokens):
            return None
        way += tokens
    return None
