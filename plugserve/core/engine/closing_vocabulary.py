"""A vocabulary ranked for ending an answer: the preferred allowed token, and the text of each.

The order suits JSON: close open brackets first, omit optional parts, and for a required value prefer null, a digit or
an empty string to an array or an object. There are two orders, since inside a free string any bracket is text and only
a quotation mark ends it.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from plugserve.core.engine.shortest_match import Speller

if TYPE_CHECKING:
    from llguidance import LLTokenizer

DIGITS: Final = range(60, 62)
WORDS: Final = range(62, 80)
_NEVER: Final = 255
_LEAST_RANK: Final = 10  # closers have lower ones
_BEFORE_WORDS: Final = (b'"', b",", b":", b"@", b"null", b"Z", b"true", b"false")
_RANKS: Final = {token: 10 + rank for rank, token in enumerate(_BEFORE_WORDS)} | {b"[": 120, b"{": 121}
_PROBE: Final = b"~"  # where it may come, the answer is inside a string, whose text may hold brackets
_CLOSERS: Final = frozenset(b"}]")
_FIRST_LOOK: Final = 2048  # tokens, in order of rank

Mask = np.ndarray[Any, np.dtype[np.uint32]]
"""Bit t of the words [ceil(vocabulary / 32)] allows token t."""


class _Order:
    """Tokens by rank; those that are never taken are left out."""

    def __init__(self, ranks: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        self.ranks = ranks
        by_rank = np.argsort(ranks, kind="stable")
        self._tokens = by_rank[ranks[by_rank] < _NEVER]
        self._words = self._tokens // 32
        self._bits = (self._tokens % 32).astype(np.uint32)

    def first(self, mask: Mask, avoided: range, avoided_token: int) -> int | None:
        """The allowed token of the lowest rank; ranks in avoided, and avoided_token, come last."""
        found = self._first(mask, slice(0, _FIRST_LOOK), avoided, avoided_token, is_whole=False)
        return self._first(mask, slice(None), avoided, avoided_token, is_whole=True) if found is None else found

    def _first(self, mask: Mask, part: slice, avoided: range, avoided_token: int, *, is_whole: bool) -> int | None:
        is_allowed = mask[self._words[part]] >> self._bits[part] & 1
        allowed = self._tokens[part][is_allowed.astype(bool)]
        if not len(allowed):
            return None
        ranks = self.ranks[allowed]
        is_avoided = (ranks >= avoided.start) & (ranks < avoided.stop) | (allowed == avoided_token)
        if is_avoided.all():
            return int(allowed[0]) if is_whole else None
        return int(allowed[is_avoided.argmin()])


class ClosingVocabulary:
    """Made once for a model, from its tokenizer. texts holds what each token spells, b"" for special tokens."""

    def __init__(self, tokenizer: LLTokenizer, vocab_size: int, eos_ids: list[int]) -> None:
        self.eos_id = eos_ids[0] if eos_ids else None
        self.num_mask_words = -(-vocab_size // 32)
        self.spelt = [b""] * vocab_size
        in_structure = np.full(vocab_size, _NEVER, np.uint8)
        in_text = np.full(vocab_size, _NEVER, np.uint8)
        self._probe: int | None = None
        for token in range(min(vocab_size, tokenizer.vocab_size)):
            if tokenizer.is_special_token(token):
                in_text[token] = 0 if token not in eos_ids else _NEVER
                continue
            spelt = self.spelt[token] = tokenizer.decode_bytes([token])
            if spelt:
                in_structure[token], in_text[token] = _structure_rank(spelt), _text_rank(spelt)
            if spelt == _PROBE:
                self._probe = token
        self._in_structure, self._in_text = _Order(in_structure), _Order(in_text)

    def first(self, mask: Mask, avoided: range = range(0), avoided_token: int = -1) -> int | None:
        """The preferred token of those that mask allows; None if it allows none."""
        return self._order(mask).first(mask, avoided, avoided_token)

    def rank(self, mask: Mask, token: int) -> int:
        return int(self._order(mask).ranks[token])

    def ends_text(self, mask: Mask, token: int) -> bool:
        """True if token, which mask allows, ends a string."""
        return bool(self.spelt[token]) and self._order(mask) is self._in_text and self.rank(mask, token) < _LEAST_RANK

    def _order(self, mask: Mask) -> _Order:
        probe = self._probe
        is_text = probe is not None and mask[probe // 32] >> probe % 32 & 1
        return self._in_text if is_text else self._in_structure

    @cached_property
    def speller(self) -> Speller:
        """Spells texts of given character classes; tokens that contain partial characters are not used."""
        return Speller([_text(spelt) for spelt in self.spelt])


def _text(spelt: bytes) -> str:
    try:
        return spelt.decode()
    except UnicodeDecodeError:
        return ""


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
        return DIGITS[spelt == b"0"] if len(spelt) == 1 else 140
    if spelt.isalpha() and spelt.isascii():
        return WORDS[-min(len(spelt), len(WORDS))]
    return 90 if len(spelt) == 1 else 140
