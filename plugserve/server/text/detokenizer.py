"""Token ids into text, piece by piece.

The text of all pieces equals one decode of all ids, but for an incomplete UTF-8 character at the very end, which is
dropped. A Vocabulary is made once a model and shared; a Detokenizer is made once a sequence.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Sequence
from typing import Final, Protocol

from tokenizers import Tokenizer

from plugserve.server.text.token_pieces import TokenLookup, WholeTokenizer

_REPLACEMENT: Final = "\ufffd"
_MAX_CHARACTER_TOKENS: Final = 4  # a UTF-8 character has at most four bytes, a token at least one
_NUM_CONTEXT_TOKENS: Final = 8
_BYTE_PIECE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_new_utf8_decoder: Final = codecs.getincrementaldecoder("utf-8")


class Detokenizer(Protocol):
    """The text of one sequence, in increments."""

    def push(self, token_id: int) -> str:
        """The text that token_id completes: "" while a character is still incomplete."""

    def flush(self) -> str:
        """The rest of the text, at the end of the sequence. Called once, last."""


class Vocabulary:
    """A tokenizer's tokens as text and bytes, looked up lazily and kept."""

    def __init__(self, tokenizer: Tokenizer | TokenLookup) -> None:
        lookup = WholeTokenizer(tokenizer) if isinstance(tokenizer, Tokenizer) else tokenizer
        decoder = lookup.decoder_json()
        names = _decoder_names(decoder)
        self._tokenizer = lookup
        self.num_tokens: int = lookup.get_vocab_size(with_added_tokens=True)
        self._is_byte_level = names == ["ByteLevel"]
        self._has_byte_pieces = "ByteFallback" in names
        self._marks_spaces = "Metaspace" in names or "\u2581" in json.dumps(decoder, ensure_ascii=False)
        self._bytes: dict[int, bytes] = {}
        self.special_ids: frozenset[int] = frozenset(lookup.special_tokens())

    def detokenizer(
        self, *, skip_special_tokens: bool = True, context: Sequence[int] = (), kept: Collection[str] = ()
    ) -> Detokenizer:
        """A fresh detokenizer. context: prompt tokens that the text continues, so that a leading space that the
        tokenizer drops only at the start of a text is kept; empty for a text that stands alone. kept: special tokens
        that are not skipped."""
        skipped = self.special_ids if skip_special_tokens else frozenset()
        if skipped and kept:
            skipped -= {self._tokenizer.token_to_id(token) for token in kept}
        if self._is_byte_level:
            return _ByteLevelDetokenizer(self, skipped)
        return _WindowDetokenizer(self, skipped, context)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """One decode of all ids; unlike the detokenizers it writes an incomplete last character as U+FFFD."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """A token's bytes, if they don't depend on its position in the text; b"" for an id that the vocabulary
        lacks."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._look_up(token_id)
        return known

    def token_text(self, token_id: int) -> str:
        """The token alone, special ones written out; bytes that are no whole character become U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def is_byte_piece(self, token_id: int) -> bool:
        """True for tokens like <0xE4>, which are decoded together with their neighbours."""
        if not self._has_byte_pieces:
            return False
        piece = self._tokenizer.id_to_token(token_id)
        return piece is not None and _BYTE_PIECE.fullmatch(piece) is not None

    def _look_up(self, token_id: int) -> bytes:
        piece = self._tokenizer.id_to_token(token_id)
        if piece is None:
            return b""
        if self._is_byte_level:
            return _byte_level_bytes(piece)
        if self._has_byte_pieces and (byte := _BYTE_PIECE.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        if self._marks_spaces:
            return piece.replace("\u2581", " ").encode()
        return self._tokenizer.decode([token_id], skip_special_tokens=False).encode()


class _ByteLevelDetokenizer:
    """Every token is its own bytes (GPT-2's alphabet), so text is those bytes read as UTF-8."""

    def __init__(self, vocabulary: Vocabulary, skipped: frozenset[int]) -> None:
        self._token_bytes = vocabulary.token_bytes
        self._skipped = skipped
        self._utf8 = _new_utf8_decoder("replace")

    def push(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        return self._utf8.decode(self._token_bytes(token_id))

    def flush(self) -> str:
        return ""


class _WindowDetokenizer:
    """Detokenizer for decoders whose tokens depend on their neighbours: decodes a short window with and without the new
    tokens.

    The text of the window's older tokens has been returned. The window starts at a token whose own text is not empty,
    because decoders drop a space at the start of a text, and moves only behind whole characters.
    """

    def __init__(self, vocabulary: Vocabulary, skipped: frozenset[int], context: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._skipped = skipped
        self._window = self._usable_context(context)
        self._returned = self._decode(self._window)
        self._num_held = 0

    def push(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        self._window.append(token_id)
        self._num_held += 1
        if self._vocabulary.is_byte_piece(token_id):
            return ""  # a run of byte pieces is valid or not as a whole
        text = self._decode(self._window)
        if text.endswith(_REPLACEMENT) and self._num_held < _MAX_CHARACTER_TOKENS:
            return ""
        return self._new_text(text)

    def flush(self) -> str:
        if not self._num_held:
            return ""
        run: list[int] = []
        while self._window and self._num_held and self._vocabulary.is_byte_piece(self._window[-1]):
            run.insert(0, self._window.pop())
            self._num_held -= 1
        data = b"".join(self._vocabulary.token_bytes(token_id) for token_id in run)
        if run and _is_utf8(data):  # complete: the decoder handles a space at the start
            self._window += run
            self._num_held += len(run)
            return self._new_text(self._decode(self._window))
        text = self._new_text(self._decode(self._window)) if self._num_held else ""
        return text + _byte_run_text(data) if run else text.rstrip(_REPLACEMENT)

    def _new_text(self, text: str) -> str:
        new = text[len(self._returned) :]
        tail = self._window[-self._num_held :]
        tail_text = self._decode(tail)
        if tail_text and not self._vocabulary.is_byte_piece(tail[0]):
            self._window, self._returned = tail, tail_text
        else:
            self._returned = text
        self._num_held = 0
        return new

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._vocabulary.decode(token_ids, skip_special_tokens=False) if token_ids else ""

    def _usable_context(self, context: Sequence[int]) -> list[int]:
        usable = [token_id for token_id in context[-_NUM_CONTEXT_TOKENS:] if token_id not in self._skipped]
        while usable and self._vocabulary.is_byte_piece(usable[0]):
            del usable[0]
        while usable and self._vocabulary.is_byte_piece(usable[-1]):
            del usable[-1]
        return usable if self._decode(usable) else []


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _byte_run_text(data: bytes) -> str:
    """A run of byte pieces at the end of a sequence: whole characters without the incomplete last one, or, where the
    run is no UTF-8 at all, one U+FFFD a byte as tokenizers' ByteFallback decoder writes it."""
    try:
        return _new_utf8_decoder("strict").decode(data)
    except UnicodeDecodeError:
        return _REPLACEMENT * len(data)


def _decoder_names(decoder: dict[str, object] | None) -> list[str]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        parts = decoder["decoders"]
        assert isinstance(parts, list)
        return [name for part in parts for name in _decoder_names(part)]
    return [str(decoder["type"])]


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 bytes map to themselves, the others to characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return alphabet


_BYTE_OF: Final = _byte_alphabet()


def _byte_level_bytes(piece: str) -> bytes:
    """A piece in GPT-2's alphabet; one with any other character is an added token and is its own text."""
    try:
        return bytes(_BYTE_OF[character] for character in piece)
    except KeyError:
        return piece.encode()
