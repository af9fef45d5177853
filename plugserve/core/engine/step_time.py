"""A model of a step's duration from the work that it does, fitted online.

    base_s + per_token_s * prompt tokens + per_row_s * decoding rows + per_pair_s * attended pairs

by least squares over the steps so far, none of the four below zero. Steps with and without prompt tokens are forgotten
separately, so that an hour of pure decoding doesn't wash out what a prompt token costs.
"""

from __future__ import annotations

from typing import Final

from plugserve.core.contracts.scheduling import StepTime

_NUM: Final = 4
_REFIT_STEPS: Final = 16  # solving costs as much as planning a small step
_RIDGE: Final = 1e-6  # against columns that always move together, such as rows and pairs of a single sequence


class _Sums:
    """Weighted sums of products of the columns x = (1, prompt tokens, decoding rows, pairs) with each other and y."""

    __slots__ = ("xx", "xy")

    def __init__(self) -> None:
        self.xx = [0.0] * (_NUM * _NUM)
        self.xy = [0.0] * _NUM

    def add(self, x: tuple[float, float, float, float], y: float, keep: float) -> None:
        """Weigh the past by keep, then add one observation."""
        a, b, c, d = x
        xx, xy = self.xx, self.xy
        if keep != 1.0:
            self.xx = xx = [keep * value for value in xx]
            self.xy = xy = [keep * value for value in xy]
        for i, value in ((0, a), (1, b), (2, c), (3, d)):
            if value:
                start = _NUM * i
                xx[start] += value * a
                xx[start + 1] += value * b
                xx[start + 2] += value * c
                xx[start + 3] += value * d
                xy[i] += value * y


class StepTimeFit:
    """Exponentially forgetting least squares; decay is the weight of the past at each step, 1 to forget nothing."""

    def __init__(self, decay: float = 0.99) -> None:
        self._decay = decay
        self._prompt_steps, self._decode_steps = _Sums(), _Sums()
        self._num_observed = 0
        self._num_at_fit = -1
        self._fitted = StepTime()

    def observe(self, num_prompt_tokens: int, num_decoding: int, num_pairs: int, duration_s: float) -> None:
        """Add one step's work and duration. num_pairs: the sum over its tokens of how many tokens each one attends
        to."""
        sums = self._prompt_steps if num_prompt_tokens else self._decode_steps
        sums.add((1.0, num_prompt_tokens, num_decoding, num_pairs), duration_s, self._decay)
        self._num_observed += 1

    def fit(self) -> StepTime:
        """The current model; refitted every few steps. All zero before anything was observed."""
        age = self._num_observed - self._num_at_fit
        return self.refit() if age >= _REFIT_STEPS or (age and self._num_observed < _REFIT_STEPS) else self._fitted

    def refit(self) -> StepTime:
        """The model of everything observed so far."""
        self._num_at_fit = self._num_observed
        self._fitted = StepTime(*self._solve())
        return self._fitted

    def flush(self) -> None:
        """The engine is idle: write what is kept in memory, if anything is."""

    def _solve(self) -> list[float]:
        """Least squares with no coefficient below zero: the most negative column is left out until none is."""
        xx = [a + b for a, b in zip(self._prompt_steps.xx, self._decode_steps.xx, strict=True)]
        xy = [a + b for a, b in zip(self._prompt_steps.xy, self._decode_steps.xy, strict=True)]
        columns = [i for i in range(_NUM) if xx[_NUM * i + i] > 0]
        while columns:
            found = _solve_scaled(xx, xy, columns)
            worst = min(found)
            if worst >= 0:
                solution = [0.0] * _NUM
                for i, value in zip(columns, found, strict=True):
                    solution[i] = value
                return solution
            columns.pop(found.index(worst))
        return [0.0] * _NUM


def _solve_scaled(xx: list[float], xy: list[float], columns: list[int]) -> list[float]:
    """Coefficients of columns alone, by Gaussian elimination on columns scaled to equal length, with a small ridge."""
    scale = [xx[_NUM * i + i] ** -0.5 for i in columns]
    n = len(columns)
    rows = [
        [xx[_NUM * i + j] * scale[r] * scale[c] + (_RIDGE if r == c else 0.0) for c, j in enumerate(columns)]
        + [xy[i] * scale[r]]
        for r, i in enumerate(columns)
    ]
    for pivot in range(n):
        head = rows[pivot]
        for row in rows[pivot + 1 :]:
            factor = row[pivot] / head[pivot]
            for c in range(pivot, n + 1):
                row[c] -= factor * head[c]
    values = [0.0] * n
    for r in range(n - 1, -1, -1):
        known = sum(rows[r][c] * values[c] for c in range(r + 1, n))
        values[r] = (rows[r][n] - known) / rows[r][r]
    return [value * factor for value, factor in zip(values, scale, strict=True)]
