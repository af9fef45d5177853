"""Texts and pairs of texts as an encoder's tokens: with the special tokens around them, cut to a length where asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding, Tokenizer

from plugserve.core.model_files.encoder_files import EncoderFacts


@dataclass(frozen=True, slots=True)
class Cut:
    """Limits in tokens; None: as long as it is. total counts special tokens, second only those of a pair's second
    text."""

    total: int | None = None
    second: int | None = None


UNCUT = Cut()


class EncoderText:
    """The text side of one encoder. Takes long for long texts: call it off the event loop."""

    def __init__(self, tokenizer: Tokenizer, facts: EncoderFacts) -> None:
        self.facts = facts
        self._tokenizer = tokenizer

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The tokens of one text."""
        return self.encode_texts([text], UNCUT, add_special_tokens=add_special_tokens)[0]

    def encode_texts(self, texts: Sequence[str], cut: Cut, *, add_special_tokens: bool = True) -> list[list[int]]:
        """The tokens of each text; cut ones keep their beginning and the special tokens."""
        tokenizer: Any = self._tokenizer
        found: list[list[int]] = []
        num_special = tokenizer.num_special_tokens_to_add(False) if add_special_tokens else 0
        for encoding in self._bare(texts):
            _truncate(encoding, None if cut.total is None else cut.total - num_special)
            found.append(tokenizer.post_process(encoding, add_special_tokens=add_special_tokens).ids)
        return found

    def encode_pairs(self, pairs: Sequence[tuple[str, str]], cut: Cut) -> list[tuple[list[int], int]]:
        """The tokens of each pair, and the index of the first that belongs to its second text (0 for models that don't
        tell them apart). Of a pair that is cut, the longer text loses tokens first."""
        tokenizer: Any = self._tokenizer
        found: list[tuple[list[int], int]] = []
        num_special = tokenizer.num_special_tokens_to_add(True)
        firsts = self._bare([first for first, _ in pairs])
        seconds = self._bare([second for _, second in pairs])
        for first, second in zip(firsts, seconds, strict=True):
            _truncate(second, cut.second)
            if cut.total is not None:
                lengths = longest_first(len(first.ids), len(second.ids), max(0, cut.total - num_special))
                _truncate(first, lengths[0])
                _truncate(second, lengths[1])
            whole = tokenizer.post_process(first, second, add_special_tokens=True)
            found.append((whole.ids, whole.type_ids.index(1) if 1 in whole.type_ids else 0))
        return found

    def _bare(self, texts: Sequence[str]) -> list[Encoding]:
        """Without special tokens. A batch, because it doesn't hold the interpreter lock."""
        given = [text.lower() for text in texts] if self.facts.lowercases else list(texts)
        encodings: list[Encoding] = self._tokenizer.encode_batch(given, add_special_tokens=False)
        return encodings


def _truncate(encoding: Encoding, length: int | None) -> None:
    if length is not None and len(encoding.ids) > length:
        encoding.truncate(max(0, length))


def longest_first(first: int, second: int, target: int) -> tuple[int, int]:
    """The lengths of two texts that are cut to target tokens together, as the tokenizers library does it."""
    if first + second <= target:
        return first, second
    shorter, longer = min(first, second), max(first, second)
    longer = shorter if shorter > target else max(shorter, target - shorter)
    if shorter + longer > target:
        shorter = target // 2
        longer = shorter + target % 2
    return (shorter, longer) if first <= second else (longer, shorter)
