"""A token bucket for each key. Knows nothing of requests.

How many tokens a request takes is known when it has ended, so a bucket may go below zero: the debt is waited for.
"""

MOST_KEYS = 10_000


class TokenBuckets:
    """Each key's bucket fills by per_minute a minute up to burst; a key that was never seen has a full one."""

    def __init__(self, per_minute: float, burst: float) -> None:
        self._per_s = per_minute / 60
        self._burst = burst
        self._levels: dict[str, tuple[float, float]] = {}  # (level, when), oldest change first

    def wait_s(self, key: str, now_s: float) -> float:
        """Seconds until key may ask again; 0 when it may now."""
        level = self._level(key, now_s)
        return 0.0 if level > 0 else (1 - level) / self._per_s

    def spend(self, key: str, num_tokens: float, now_s: float) -> None:
        """Take tokens out of key's bucket."""
        level = self._level(key, now_s) - num_tokens
        self._levels.pop(key, None)
        self._levels[key] = (level, now_s)
        if len(self._levels) > MOST_KEYS:
            self._forget_rested(now_s)

    def _level(self, key: str, now_s: float) -> float:
        level, then_s = self._levels.get(key, (self._burst, now_s))
        return min(self._burst, level + (now_s - then_s) * self._per_s)

    def _forget_rested(self, now_s: float) -> None:
        """Drop full buckets, which are as good as new ones; failing that, the one that rested longest."""
        rested = [key for key in self._levels if self._level(key, now_s) >= self._burst]
        for key in rested or [next(iter(self._levels))]:
            del self._levels[key]
