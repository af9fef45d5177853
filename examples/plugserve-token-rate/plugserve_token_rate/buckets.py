"""Token buckets, one per key.

A request's tokens are known only when it ends, so a bucket may go below zero; its key waits until it is refilled.
"""

MOST_KEYS = 10_000


class TokenBuckets:
    """Each key's bucket fills by per_minute tokens a minute, up to burst; a new key's bucket is full."""

    def __init__(self, per_minute: float, burst: float) -> None:
        self._per_s = per_minute / 60
        self._burst = burst
        self._levels: dict[str, tuple[float, float]] = {}  # (level, when), oldest change first

    def wait_s(self, key: str, now_s: float) -> float:
        """Seconds until key may send a request; 0 if it may now."""
        level = self._level(key, now_s)
        return 0.0 if level > 0 else (1 - level) / self._per_s

    def spend(self, key: str, num_tokens: float, now_s: float) -> None:
        """Take tokens out of key's bucket."""
        level = self._level(key, now_s) - num_tokens
        self._levels.pop(key, None)
        self._levels[key] = (level, now_s)
        if len(self._levels) > MOST_KEYS:
            self._drop_full(now_s)

    def _level(self, key: str, now_s: float) -> float:
        level, then_s = self._levels.get(key, (self._burst, now_s))
        return min(self._burst, level + (now_s - then_s) * self._per_s)

    def _drop_full(self, now_s: float) -> None:
        """Drop full buckets, which equal new ones; if there is none, the one that was unused for longest."""
        full = [key for key in self._levels if self._level(key, now_s) >= self._burst]
        for key in full or [next(iter(self._levels))]:
            del self._levels[key]
