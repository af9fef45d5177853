"""Prompt lookup: drafts the tokens that followed an earlier occurrence of the last tokens. Needs no model.

The last n tokens of a sequence are looked for in its own history, the longest n first; the tokens after the newest
match are drafted (Saxena 2023, prompt lookup decoding). Pays where answers copy: edits, quotations, code, lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, model_validator

from plugserve.core.contracts.drafting import Drafts, DraftStep
from plugserve.core.contracts.factories import DraftProposerContext, DraftProposerFactory
from plugserve.core.plugin_system.hookspecs import hookimpl

if TYPE_CHECKING:
    import torch


class NgramOptions(BaseModel):
    """Options: the lengths of matches."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    max_n: int = Field(4, ge=1, le=32, description="Longest run of tokens that is looked for.")
    min_n: int = Field(2, ge=1, le=32, description="Shortest run of tokens that counts as a match.")

    @model_validator(mode="after")
    def _check_order(self) -> NgramOptions:
        if self.min_n > self.max_n:
            raise ValueError(f"min-n ({self.min_n}) is above max-n ({self.max_n})")
        return self


class NgramProposer:
    """DraftProposer over the rows' own tokens, all rows at once on their device. Keeps no state between steps."""

    def __init__(self, max_n: int, min_n: int) -> None:
        import torch

        self._torch = torch
        self._max_n = max_n
        self._min_n = min_n

    def propose(self, step: DraftStep, k: int) -> Drafts:
        torch, device = self._torch, step.tokens.device
        longest = max(step.lengths)
        history = step.tokens[torch.tensor(step.rows, device=device), :longest]  # [B, L]
        lengths = torch.tensor(step.lengths, device=device)
        ends = self._find(history, lengths, k)  # [B], where a continuation starts; 0 for none
        columns = ends.unsqueeze(1) + torch.arange(k, device=device)
        tokens = history.gather(1, columns.clamp(max=longest - 1))
        counts = torch.where(ends > 0, lengths - ends, 0).tolist()
        return Drafts(tokens, [min(count, most) for count, most in zip(counts, step.num_drafts, strict=True)])

    def forget(self, id: int) -> None:
        """Nothing: there is no state."""

    def _find(self, history: torch.Tensor, lengths: torch.Tensor, k: int) -> torch.Tensor:
        """For each row the end of the best earlier occurrence of its last n tokens, 0 without one: of the longest n;
        among those, the newest with k tokens behind it, else the one with the most."""
        torch = self._torch
        places = torch.arange(history.shape[1], device=history.device)
        ends = torch.zeros_like(lengths)
        for n in range(min(self._max_n, history.shape[1] - 1), self._min_n - 1, -1):
            last = (lengths.unsqueeze(1) - n + torch.arange(n, device=history.device)).clamp(min=0)
            wanted = history.gather(1, last)  # [B, n]
            num_starts = history.shape[1] - n
            starts = places[:num_starts]
            is_match = (starts + n < lengths.unsqueeze(1)) & (lengths > n).unsqueeze(1)
            for i in range(n):
                is_match &= history[:, i : i + num_starts] == wanted[:, i : i + 1]
            is_long = starts + n + k <= lengths.unsqueeze(1)
            score = torch.where(is_match, torch.where(is_long, num_starts + starts, num_starts - 1 - starts), -1)
            best, start = score.max(1)
            ends = torch.where((ends == 0) & (best >= 0), start + n, ends)
        return ends  # type: ignore[no-any-return]


def make_ngram(context: DraftProposerContext) -> NgramProposer:
    options = context.options
    return NgramProposer(options.max_n, options.min_n)


@hookimpl
def plugserve_options() -> type[BaseModel]:
    return NgramOptions


@hookimpl
def plugserve_draft_proposers() -> Mapping[str, DraftProposerFactory]:
    return {"ngram": make_ngram}
