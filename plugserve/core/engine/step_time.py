"""How long a step of so many tokens takes: a line fitted on line. Knows nothing of what a step does."""

from __future__ import annotations

from plugserve.core.contracts import StepTime


class StepTimeFit:
    """Exponentially forgetting least squares of duration over tokens; decay is the weight of the past at each step."""

    def __init__(self, decay: float = 0.98) -> None:
        self._decay = decay
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, num_tokens: int, duration_s: float) -> None:
        keep = self._decay
        self._weight = keep * self._weight + 1.0
        self._x = keep * self._x + num_tokens
        self._y = keep * self._y + duration_s
        self._xx = keep * self._xx + num_tokens * num_tokens
        self._xy = keep * self._xy + num_tokens * duration_s

    def line(self) -> StepTime:
        """The current fit; a flat line through the mean while all steps had the same size."""
        if not self._weight:
            return StepTime()
        spread = self._weight * self._xx - self._x * self._x
        if spread <= 1e-9 * self._weight * self._xx:
            return StepTime(base_s=self._y / self._weight)
        slope = max(0.0, (self._weight * self._xy - self._x * self._y) / spread)
        return StepTime(base_s=max(0.0, (self._y - slope * self._x) / self._weight), per_token_s=slope)
