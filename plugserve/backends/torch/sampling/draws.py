"""The tokens that one step draws: which device row each belongs to, and at which position it will stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from plugserve.backends.torch.runner.transfers import to_device

Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(slots=True)
class Draws:
    """S draws. num_known[s] tokens of device row rows[s] are known, so that the drawn token stands at that position.

    rows and num_known lie on the host, device_rows and positions [S] int64 are the same on the device. A row may stand
    there several times, with other counts of known tokens.
    """

    rows: Indices
    num_known: Indices
    device_rows: torch.Tensor
    positions: torch.Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, index: Indices | slice, device_index: torch.Tensor | slice) -> Draws:
        """The draws at index, given on the host and on the device."""
        return Draws(
            self.rows[index], self.num_known[index], self.device_rows[device_index], self.positions[device_index]
        )


def make_draws(rows: Sequence[int], num_known: Sequence[int], device: torch.device) -> Draws:
    """Draws from host lists, sent to the device in one copy."""
    columns = np.array([rows, num_known], dtype=np.int64)
    placed = to_device(columns, device)
    return Draws(columns[0], columns[1], placed[0], placed[1])


@dataclass(slots=True)
class TokenMasks:
    """The tokens that grammars allow: words int32 [M, words]; words[i] has bit t set for each token t that draw
    entries[i] may take."""

    entries: list[int]
    words: torch.Tensor

    def part(self, span: slice) -> TokenMasks | None:
        """Those of the draws in span, counted from its start; None for none."""
        chosen = [i for i, entry in enumerate(self.entries) if span.start <= entry < span.stop]
        if not chosen:
            return None
        words = self.words[to_device(np.array(chosen), self.words.device)]
        return TokenMasks([self.entries[i] - span.start for i in chosen], words)

    def allowed(self, vocab_size: int) -> torch.Tensor:
        """bool [M, vocab_size]; 32 tokens a word, lowest bit first."""
        bits = torch.arange(32, dtype=torch.int32, device=self.words.device)
        return ((self.words.unsqueeze(-1) >> bits) & 1).bool().flatten(1)[:, :vocab_size]


def selection(index: Indices, num_draws: int, device: torch.device) -> torch.Tensor | slice:
    """index into num_draws draws on the device; all of them as a slice, which copies nothing."""
    return slice(None) if len(index) == num_draws else to_device(index, device)
