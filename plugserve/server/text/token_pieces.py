"""A tokenizer's pieces and its decoder, without what is needed to encode: what turns ids into text.

Made from arrays, in milliseconds: a whole tokenizers.Tokenizer of a large vocabulary takes a second to make, in which
no other thread runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
from tokenizers import Tokenizer


class TokenLookup(Protocol):
    """The part of tokenizers.Tokenizer that a Vocabulary uses."""

    def decoder_json(self) -> Any: ...

    def get_vocab_size(self, with_added_tokens: bool = True) -> int: ...

    def id_to_token(self, id: int) -> str | None: ...

    def token_to_id(self, token: str) -> int | None: ...

    def special_tokens(self) -> Mapping[int, str]: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


@dataclass(frozen=True, slots=True)
class WholeTokenizer:
    """A TokenLookup in a tokenizer of this process."""

    tokenizer: Tokenizer

    def decoder_json(self) -> Any:
        return json.loads(self.tokenizer.to_str())["decoder"]

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        return int(self.tokenizer.get_vocab_size(with_added_tokens=with_added_tokens))

    def id_to_token(self, id: int) -> str | None:
        return self.tokenizer.id_to_token(id)

    def token_to_id(self, token: str) -> int | None:
        return self.tokenizer.token_to_id(token)

    def special_tokens(self) -> Mapping[int, str]:
        added = self.tokenizer.get_added_tokens_decoder()
        return {token_id: token.content for token_id, token in added.items() if token.special}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))


class PieceFacts(msgspec.Struct):
    """What TokenPieces is made from, but for its pieces. special are the special tokens by id."""

    decoder: Any
    num_tokens: int
    special: dict[int, str]


class TokenPieces:
    """A TokenLookup without a tokenizer. The piece of id i is text[starts[i] : starts[i] + lengths[i]] (UTF-8); a
    length of -1 is an id that the vocabulary lacks."""

    def __init__(self, facts: PieceFacts, starts: bytes, lengths: bytes, text: bytes) -> None:
        self._facts = facts
        self._starts = np.frombuffer(starts, dtype="<i4")
        self._lengths = np.frombuffer(lengths, dtype="<i4")
        self._text = text
        self._special = frozenset(facts.special.values())
        self._ids = {token: token_id for token_id, token in facts.special.items()}
        self._decoder = _decoder(facts.decoder)

    def decoder_json(self) -> Any:
        return self._facts.decoder

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        return self._facts.num_tokens

    def id_to_token(self, id: int) -> str | None:
        if not 0 <= id < len(self._starts) or self._lengths[id] < 0:
            return None
        start = int(self._starts[id])
        return self._text[start : start + int(self._lengths[id])].decode()

    def token_to_id(self, token: str) -> int | None:
        """Of special tokens alone."""
        return self._ids.get(token)

    def special_tokens(self) -> Mapping[int, str]:
        return self._facts.special

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        pieces = [piece for id in ids if (piece := self.id_to_token(id)) is not None]
        if skip_special_tokens:
            pieces = [piece for piece in pieces if piece not in self._special]
        return " ".join(pieces) if self._decoder is None else str(self._decoder.decode(pieces))


def pieces_of(tokenizer: Tokenizer) -> tuple[PieceFacts, bytes, bytes, bytes]:
    """The arguments of TokenPieces for tokenizer."""
    lookup = WholeTokenizer(tokenizer)
    count = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    pieces = [lookup.id_to_token(token_id) for token_id in range(count)]
    encoded = [b"" if piece is None else piece.encode() for piece in pieces]
    lengths = np.asarray([-1 if p is None else len(e) for p, e in zip(pieces, encoded, strict=True)], dtype="<i4")
    starts = np.zeros(count, dtype="<i4")
    np.cumsum(np.maximum(lengths, 0)[:-1], out=starts[1:] if count else starts)
    facts = PieceFacts(lookup.decoder_json(), lookup.get_vocab_size(), dict(lookup.special_tokens()))
    return facts, starts.tobytes(), lengths.tobytes(), b"".join(encoded)


def _decoder(described: Any) -> Any:
    """tokenizers' decoder of this description, which only a whole tokenizer can be asked for: one without tokens."""
    if described is None:
        return None
    empty = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    return Tokenizer.from_str(json.dumps({**empty, "decoder": described})).decoder
