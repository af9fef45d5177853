"""Sparse rules of rows - logit_bias, stop tokens held back, allowed tokens, bad words - as lists on the device.

A row's lists are sent when it starts. A step concatenates those of its draws; decode steps of the same rows find the
concatenation of the step before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from plugserve.backends.torch.runner.transfers import to_device
from plugserve.backends.torch.sampling.draws import Indices
from plugserve.core.contracts.runner import NewRow
from plugserve.core.rows.row_table import Need, needs_of

ANY = -1
"""In a bad word's beginning: fits every token."""


@dataclass(slots=True)
class Joined:
    """The lists of some draws, one after another: the draw and the token id [N] of each entry, and its value."""

    draws: torch.Tensor
    ids: torch.Tensor
    values: torch.Tensor

    def places(self, vocab_size: int) -> torch.Tensor:
        """[N]: where the entries lie in flattened logits."""
        return self.draws * vocab_size + self.ids


class TokenLists:
    """One list of token ids with values for each of some rows."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lists: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._key: tuple[list[int], list[int]] | None = None
        self._joined: Joined | None = None

    def put(self, row: int, ids: Sequence[int], values: Sequence[float]) -> None:
        """Set a row's list; values may be empty for a rule that needs none."""
        placed = to_device(np.array(ids, dtype=np.int64), self._device)
        self._lists[row] = placed, to_device(np.array(values, dtype=np.float32), self._device)
        self._key = None

    def drop(self, row: int) -> None:
        """Forget a row's list, if it has one."""
        if self._lists.pop(row, None) is not None:
            self._key = None

    def join(self, entries: Indices, rows: Indices) -> Joined:
        """The lists of draws entries, which belong to rows."""
        key = entries.tolist(), rows.tolist()
        if self._joined is None or key != self._key:
            lists = [self._lists[row] for row in key[1]]
            draws = to_device(entries.repeat([len(ids) for ids, _ in lists]), self._device)
            self._joined = Joined(draws, torch.cat([ids for ids, _ in lists]), torch.cat([one for _, one in lists]))
            self._key = key
        return self._joined


@dataclass(slots=True)
class JoinedWords:
    """The bad words of some draws: the draw of each [N], its beginning [N, L] int32 padded with ANY on the left, how
    many tokens that has [N], and the last token [N]. length is L."""

    draws: torch.Tensor
    beginnings: torch.Tensor
    sizes: torch.Tensor
    last: torch.Tensor
    length: int


class WordLists:
    """The bad words of each of some rows."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lists: dict[int, tuple[tuple[int, ...], ...]] = {}
        self._key: tuple[list[int], list[int]] | None = None
        self._joined: JoinedWords | None = None

    def put(self, row: int, words: tuple[tuple[int, ...], ...]) -> None:
        """Set a row's words."""
        self._lists[row] = words
        self._key = None

    def drop(self, row: int) -> None:
        """Forget a row's words, if it has any."""
        if self._lists.pop(row, None) is not None:
            self._key = None

    def join(self, entries: Indices, rows: Indices) -> JoinedWords:
        """The words of draws entries, which belong to rows."""
        key = entries.tolist(), rows.tolist()
        if self._joined is None or key != self._key:
            lists = [self._lists[row] for row in key[1]]
            self._joined = self._join(entries.repeat([len(words) for words in lists]), sum(lists, ()))
            self._key = key
        return self._joined

    def _join(self, draws: Indices, words: tuple[tuple[int, ...], ...]) -> JoinedWords:
        length = max(map(len, words)) - 1
        beginnings = np.full((len(words), length), ANY, dtype=np.int32)
        for beginning, word in zip(beginnings, words, strict=True):
            beginning[length - len(word) + 1 :] = word[:-1]
        columns: np.ndarray[Any, Any] = np.array(
            [draws, [len(word) - 1 for word in words], [word[-1] for word in words]]
        )
        placed = to_device(columns.astype(np.int64), self._device)
        return JoinedWords(placed[0], to_device(beginnings, self._device), placed[1], placed[2], length)


@dataclass(slots=True)
class RowLists:
    """All sparse rules, kept up with the rows by add and drop."""

    device: torch.device
    bias: TokenLists = field(init=False)
    stop_ids: TokenLists = field(init=False)
    allowed: TokenLists = field(init=False)
    bad_words: WordLists = field(init=False)

    def __post_init__(self) -> None:
        self.bias, self.stop_ids, self.allowed = (TokenLists(self.device) for _ in range(3))
        self.bad_words = WordLists(self.device)

    def add(self, new: NewRow) -> None:
        """Send the lists of a new row."""
        row, params = new.row, new.params
        self.drop(row)
        needs = needs_of(params, new.stop_ids)
        if Need.BIAS in needs:
            bias = params.logit_bias or {}
            self.bias.put(row, list(bias), list(bias.values()))
        if Need.STOP_IDS in needs:
            self.stop_ids.put(row, new.stop_ids, ())
        if Need.ALLOWED in needs:
            self.allowed.put(row, params.allowed_token_ids, ())
        if Need.BAD_WORDS in needs:
            self.bad_words.put(row, params.bad_words)

    def drop(self, row: int) -> None:
        """Forget a row."""
        for lists in (self.bias, self.stop_ids, self.allowed, self.bad_words):
            lists.drop(row)
