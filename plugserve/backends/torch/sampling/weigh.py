"""Weigh: from adjusted logits to what may be drawn - temperature, top-k, top-p, min-p - batched by kind of draw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from plugserve.backends.torch.runner.device_state import DeviceState
from plugserve.backends.torch.sampling.draws import Draws, selection
from plugserve.backends.torch.sampling.inverse_cdf import invert_cdf, invert_wide_cdf
from plugserve.core.rows.row_table import DrawKind

_NUCLEUS_WIDTHS = (256, 4096)  # most nuclei fit into this many candidates; only the others need a full sort


@dataclass(slots=True)
class Shares:
    """The candidates of R draws: shares [R, K], not normalised, of token ids [R, K] in the order of the cumulative sum;
    ids is None for all tokens in order of ids."""

    shares: torch.Tensor
    ids: torch.Tensor | None = None

    def draw(self, numbers: torch.Tensor) -> torch.Tensor:
        """The tokens [R] that numbers [R] in [0, 1) select."""
        if self.ids is None:
            return invert_wide_cdf(self.shares, numbers)
        return self.ids.gather(1, invert_cdf(self.shares, numbers).unsqueeze(1)).squeeze(1)

    def probabilities(self, vocab_size: int) -> torch.Tensor:
        """[R, V] float64, each row summing to 1."""
        shares = self.shares.double()
        shares = shares / shares.sum(-1, keepdim=True)
        if self.ids is None:
            return shares
        return shares.new_zeros((len(shares), vocab_size)).scatter_(1, self.ids, shares)


class Weigher:
    """Weighs by the parameters in state's columns."""

    def __init__(self, state: DeviceState) -> None:
        self._state = state
        # the check whether all nuclei fit is free on a CPU, and waits for the device on a GPU
        self._nucleus_widths = _NUCLEUS_WIDTHS if state.device.type == "cpu" else ()

    def weigh(self, logits: torch.Tensor, draws: Draws) -> Iterator[tuple[torch.Tensor | slice, Shares]]:
        """(index into S, shares of those draws) of adjusted logits [S, V], until every draw was given once."""
        kinds = self._state.table.kinds[draws.rows]
        for kind in np.unique(kinds):
            index = np.flatnonzero(kinds == kind)
            chosen = selection(index, len(draws), logits.device)
            some = draws if isinstance(chosen, slice) else draws.part(index, chosen)
            if kind == DrawKind.GREEDY:
                best = logits[chosen].argmax(-1, keepdim=True)
                yield chosen, Shares(torch.ones_like(best, dtype=torch.float32), best)
                continue
            scaled = logits[chosen] / self._state.temperature[some.device_rows].unsqueeze(1)
            if kind == DrawKind.TOP_P:
                for part, shares in self._nuclei(scaled, some.device_rows):
                    yield (part if isinstance(chosen, slice) else chosen[part]), shares
            else:
                yield chosen, self._weigh_kind(DrawKind(kind), scaled, some)

    def _weigh_kind(self, kind: DrawKind, scaled: torch.Tensor, draws: Draws) -> Shares:
        if kind is DrawKind.TOP_K:
            return self._best(scaled, draws)
        probs = scaled.softmax(-1)
        if kind is DrawKind.MIN_P:
            probs = _keep_min_p(probs, probs.amax(-1, keepdim=True), self._state.min_p[draws.device_rows])
        return Shares(probs)

    def _best(self, scaled: torch.Tensor, draws: Draws) -> Shares:
        """The top_k best tokens, their shares renormalised, then top-p among them, then min-p."""
        rows = draws.device_rows
        best, ids = scaled.topk(int(self._state.table.scalars["top_k"][draws.rows].max()), dim=-1)
        is_beyond = torch.arange(best.shape[1], device=best.device) >= self._state.top_k[rows].unsqueeze(1)
        return self._filtered(best.masked_fill(is_beyond, -torch.inf).softmax(-1, dtype=torch.float64), ids, rows)

    def _nuclei(self, scaled: torch.Tensor, rows: torch.Tensor) -> Iterator[tuple[torch.Tensor | slice, Shares]]:
        """The smallest set of most likely tokens that reaches top-p, then min-p; few candidates first."""
        probs = scaled.softmax(-1)
        waiting: torch.Tensor | slice = slice(None)
        for width in self._nucleus_widths:
            if width >= probs.shape[1]:
                break
            best, ids = probs[waiting].topk(width, dim=-1)
            fits = best.sum(-1) >= self._state.top_p[rows[waiting]]
            if fits.all():
                yield waiting, self._filtered(best.double(), ids, rows[waiting])
                return
            done = _within(waiting, fits)
            if len(done):
                yield done, self._filtered(best[fits].double(), ids[fits], rows[done])
            waiting = _within(waiting, ~fits)
        best, ids = probs[waiting].sort(dim=-1, descending=True, stable=True)
        yield waiting, self._filtered(best.double(), ids, rows[waiting])

    def _filtered(self, probs: torch.Tensor, ids: torch.Tensor, rows: torch.Tensor) -> Shares:
        """Candidates in falling order after top-p and min-p."""
        probs = _keep_top_p(probs, self._state.top_p[rows])
        return Shares(_keep_min_p(probs, probs[:, :1], self._state.min_p[rows]), ids)


def _within(outer: torch.Tensor | slice, is_inner: torch.Tensor) -> torch.Tensor:
    """Those of outer where is_inner holds, as an index of what outer indexes."""
    inner = is_inner.nonzero().squeeze(1)
    return inner if isinstance(outer, slice) else outer[inner]


def _keep_top_p(probs: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Zero all but the smallest set of most likely tokens that reaches top_p; probs [R, K] in falling order."""
    before = probs.cumsum(-1) - probs
    return probs * (before < top_p.to(probs.dtype).unsqueeze(1))


def _keep_min_p(probs: torch.Tensor, best: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Zero what is less likely than min_p times the most likely token."""
    return probs * (probs >= min_p.to(probs.dtype).unsqueeze(1) * best)
