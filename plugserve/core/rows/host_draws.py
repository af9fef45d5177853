"""Draws tokens from logits in numpy, many rows in a step: sampling_law/reference.py, but fast.

A row costs what it asks for: greedy rows one argmax over all of them; a temperature alone a sum by blocks of the
vocabulary; top-k and top-p work on the few tokens near the best one. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from plugserve.core.contracts.forward_pass import Floats
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.rows.host_rows import HostRows
from plugserve.core.rows.row_table import DrawKind, Need
from plugserve.core.sampling_law.reference import Shares, adjust, draw
from plugserve.core.sampling_law.seeded_numbers import uniform

_ADJUSTING = ~int(Need.LOGPROBS)
_BLOCK = 512  # tokens whose weights are summed before the sums are searched
_FIRST_REACH = 12.0  # how far below the best scaled logit candidates are looked for first: e^-12 of its weight

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Array = np.ndarray[Any, Any]


class HostDraws:
    """Draws by the parameters of rows."""

    def __init__(self, rows: HostRows) -> None:
        self._rows = rows
        self._table = rows.table

    def draw(
        self, logits: Floats, device_rows: Sequence[int], num_known: Sequence[int], masks: dict[int, Mask]
    ) -> list[int]:
        """A token for each row of logits [S, V], -1 where they are not numbers. num_known[s] tokens of device row
        device_rows[s] are known; masks [V], by index into S, are True for tokens that a grammar allows."""
        best = logits.argmax(axis=1)  # of NaN, where there is one
        tokens = [int(token) for token in best]
        tops = logits[np.arange(len(tokens)), best]
        kinds, needs = self._table.kinds, self._table.needs
        for s, row in enumerate(device_rows):
            if np.isnan(tops[s]):
                tokens[s] = -1
            elif kinds[row] != DrawKind.GREEDY or needs[row] & _ADJUSTING or s in masks:
                tokens[s] = self._draw_one(logits[s], row, num_known[s], masks.get(s))
        return tokens

    def adjusted(self, logits: Floats, row: int, num_known: int, mask: Mask | None) -> Array:
        """logits [V] after penalties, bias and bans, by the row's known tokens."""
        if not self._table.needs[row] & _ADJUSTING and mask is None:
            return logits
        return adjust(logits, self._table.rules[row], self._rows.tokens[row, :num_known].tolist(), mask)

    def _draw_one(self, logits: Floats, row: int, num_known: int, mask: Mask | None) -> int:
        params = self._table.rules[row].params
        values = self.adjusted(logits, row, num_known, mask)
        kind = DrawKind(int(self._table.kinds[row]))
        if kind is DrawKind.GREEDY:
            return int(values.argmax())
        number = uniform(params.seed, num_known)
        if kind is DrawKind.WHOLE:
            return _draw_from_all(values, params.temperature, number)
        if kind is DrawKind.MIN_P:
            return _draw_by_id(values, params, number)
        return draw(candidates(values, params, kind), number)


def _draw_from_all(values: Array, temperature: float, number: float) -> int:
    """From the whole vocabulary: the sums of blocks are searched first, then one block."""
    weights = np.exp((values - values.max()) / temperature)
    starts = np.arange(0, len(weights), _BLOCK)
    cumulative = np.add.reduceat(weights, starts, dtype=np.float64).cumsum()
    target = number * cumulative[-1]
    block = min(int(np.searchsorted(cumulative, target, side="right")), len(starts) - 1)
    start = block * _BLOCK
    below = cumulative[block - 1] if block else 0.0
    here = weights[start : start + _BLOCK].cumsum(dtype=np.float64) + below
    place = int(np.searchsorted(here, target, side="right"))
    if place >= len(here):  # rounding
        place = int(np.flatnonzero(weights[start : start + _BLOCK])[-1])
    return start + place


def _draw_by_id(values: Array, params: SamplingParams, number: float) -> int:
    scaled = values / params.temperature
    ids = np.flatnonzero(scaled >= scaled.max() + np.log(params.min_p))
    return draw(Shares(ids, np.exp((scaled[ids] - scaled.max()).astype(np.float64))), number)


def candidates(values: Array, params: SamplingParams, kind: DrawKind) -> Shares:
    """The tokens that top-k or top-p keeps of adjusted logits [V], most likely first, equal ones by id."""
    scaled = values.astype(np.float64) / params.temperature
    best = scaled.max()
    total = 0.0 if kind is DrawKind.TOP_K else float(np.exp(scaled - best).sum())
    reach = _FIRST_REACH
    while True:
        ids = np.flatnonzero(scaled >= best - reach)
        is_all = len(ids) == len(scaled) or reach > 1e9
        if is_all or (
            len(ids) >= params.top_k if kind is DrawKind.TOP_K else _reaches(scaled[ids], best, total, params)
        ):
            break
        reach *= 4
    ids = ids[np.argsort(-scaled[ids], kind="stable")]
    if kind is DrawKind.TOP_K:
        ids = ids[: params.top_k]
    weights = np.exp(scaled[ids] - best)
    shares = weights / (weights.sum() if kind is DrawKind.TOP_K else total)
    shares = shares * (shares.cumsum() - shares < params.top_p)
    return Shares(ids, shares * (shares >= params.min_p * shares[0]))


def _reaches(some: Array, best: float, total: float, params: SamplingParams) -> bool:
    """True if these tokens have the share top_p."""
    return bool(np.exp(some - best).sum() >= params.top_p * total)
