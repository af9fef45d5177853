"""Which tokens one row may not draw: those outside allowed_token_ids, and those that would complete a bad word.

Made once a row, on the device; applying it never waits for the device. Knows nothing of text.
"""

from __future__ import annotations

import torch

from plugserve.core.contracts.sampling import SamplingParams

_ANY = -1  # in a bad word's beginning: fits every token


class TokenFilter:
    """The rules of one row."""

    def __init__(self, params: SamplingParams, device: torch.device) -> None:
        allowed = params.allowed_token_ids
        self._allowed = torch.tensor(allowed, dtype=torch.int64, device=device) if allowed else None
        words = params.bad_words
        self._length = max(map(len, words), default=1) - 1
        padded = [[_ANY] * (self._length - len(word) + 1) + list(word[:-1]) for word in words]
        self._beginnings = torch.tensor(padded, dtype=torch.int32, device=device).view(len(words), self._length)
        self._sizes = torch.tensor([len(word) - 1 for word in words], device=device)
        self._last = torch.tensor([word[-1] for word in words], dtype=torch.int64, device=device)

    def apply(self, logits: torch.Tensor, known: torch.Tensor) -> None:
        """Take what the row may not draw out of logits [V]; known [N] are its prompt and what was generated."""
        if self._allowed is not None:
            kept = logits[self._allowed]
            logits.fill_(-torch.inf)
            logits[self._allowed] = kept
        if len(self._last):
            recent = known[max(0, len(known) - self._length) :]
            beginnings = self._beginnings[:, self._length - len(recent) :]
            fits = ((beginnings == recent) | (beginnings == _ANY)).all(1) & (self._sizes <= len(recent))
            banned = torch.where(fits, -torch.inf, torch.inf).to(logits.dtype)
            logits.scatter_reduce_(0, self._last, banned, "amin")


def make_filter(params: SamplingParams, device: torch.device) -> TokenFilter | None:
    """The filter of a row, None for a row without one."""
    return TokenFilter(params, device) if params.bad_words or params.allowed_token_ids else None
