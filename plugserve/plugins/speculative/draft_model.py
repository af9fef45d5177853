"""Drafts with a small model (--speculative-model). Tracks which tokens of each row the draft model has computed.

Between two drafts a row has grown by accepted drafts, by others, or by whole steps without drafting: keys and values of
accepted drafts are kept, the rest is computed in one pass, whose last logits are the first draft's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from plugserve.core.contracts.drafting import DraftProposer, DraftRunner, Drafts, DraftStep
from plugserve.core.contracts.factories import DraftProposerContext, DraftProposerFactory
from plugserve.core.contracts.settings_view import SettingsView
from plugserve.core.errors import ConfigError
from plugserve.core.plugin_system.hookspecs import hookimpl

if TYPE_CHECKING:
    import torch


class DraftModelOptions(BaseModel):
    """Options of the draft model's sampling."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    draws: Literal["sampled", "greedy"] = Field(
        "sampled",
        description="sampled: drafts of a sampled request are drawn like its tokens, so most are kept; greedy: always "
        "the most likely token, which leaves seeded draws as they are without speculation.",
    )


@dataclass(slots=True)
class _Progress:
    """The first num_computed tokens of a row have keys and values, and behind them those of drafts that were tried."""

    num_computed: int = 0
    drafts: list[int] = field(default_factory=list)


class DraftModelProposer:
    """DraftProposer over a DraftRunner, all rows in one batch."""

    def __init__(self, runner: DraftRunner, is_greedy: bool) -> None:
        import torch

        self._torch = torch
        self._runner = runner
        self._is_greedy = is_greedy
        self._progress: dict[int, _Progress] = {}

    def propose(self, step: DraftStep, k: int) -> Drafts:
        num_rows = len(step.rows)
        starts = self._confirm(step)
        counts = [length - start for length, start in zip(step.lengths, starts, strict=True)]
        active = list(range(num_rows))
        logits = self._runner.forward(step.rows, starts, counts)
        tokens = self._torch.zeros((num_rows, k), dtype=self._torch.int64, device=step.tokens.device)
        probs: torch.Tensor | None = None
        for n in range(k):
            rows, places = [step.rows[i] for i in active], [step.lengths[i] + n for i in active]
            drawn, drawn_from = self._choose(logits, rows, places)
            index = self._torch.tensor([active, rows, places], device=tokens.device)
            tokens[index[0], n] = drawn
            step.tokens[index[1], index[2]] = drawn.to(step.tokens.dtype)
            if drawn_from is not None:
                if probs is None:
                    probs = drawn_from.new_zeros((num_rows, k, drawn_from.shape[1]))
                probs[index[0], n] = drawn_from
            active = [i for i in active if step.num_drafts[i] > n + 1]
            if active:
                still = [step.lengths[i] + n for i in active]
                logits = self._runner.forward([step.rows[i] for i in active], still, [1] * len(active))
        self._remember(step, tokens.tolist())
        return Drafts(tokens, list(step.num_drafts), probs)

    def forget(self, id: int) -> None:
        self._progress.pop(id, None)

    def _choose(
        self, logits: torch.Tensor, rows: list[int], places: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return (logits.argmax(-1), None) if self._is_greedy else self._runner.sample(logits, rows, places)

    def _confirm(self, step: DraftStep) -> list[int]:
        """The first token of each row that has to be computed: after the computed known tokens, including accepted
        drafts. The last known token is always computed, for its logits."""
        rows = [self._progress.setdefault(id, _Progress()) for id in step.ids]
        longest = max(len(row.drafts) for row in rows)
        if longest:
            device = step.tokens.device
            columns = self._torch.tensor([row.num_computed for row in rows], device=device).unsqueeze(1)
            columns = columns + self._torch.arange(longest, device=device)
            known = step.tokens[self._torch.tensor(step.rows, device=device)]
            became = known.gather(1, columns.clamp(max=known.shape[1] - 1)).tolist()
            for row, text, length in zip(rows, became, step.lengths, strict=True):
                for draft, token in zip(row.drafts, text, strict=False):
                    if draft != token or row.num_computed >= length:
                        break
                    row.num_computed += 1
                row.drafts = []
        return [min(row.num_computed, length - 1) for row, length in zip(rows, step.lengths, strict=True)]

    def _remember(self, step: DraftStep, tokens: list[list[int]]) -> None:
        """All known tokens are computed now, and all drafts but the last."""
        for id, length, count, drafts in zip(step.ids, step.lengths, step.num_drafts, tokens, strict=True):
            row = self._progress[id]
            row.num_computed = length
            row.drafts = drafts[: count - 1]


def make_draft_model(context: DraftProposerContext) -> DraftProposer:
    model = context.config.speculative_model
    assert model is not None, "plugserve_configure has checked it"
    runner = context.build_runner(model)
    context.reserve_kv(runner.kv_bytes_per_token)
    return DraftModelProposer(runner, context.options.draws == "greedy")


@hookimpl
def plugserve_options() -> type[BaseModel]:
    return DraftModelOptions


@hookimpl
def plugserve_configure(config: SettingsView) -> None:
    if config.speculative_model is None:
        raise ConfigError("--plugin draft-model needs the draft model: --speculative-model MODEL")


@hookimpl
def plugserve_draft_proposers() -> Mapping[str, DraftProposerFactory]:
    return {"draft-model": make_draft_model}
