"""A line about an engine's throughput every 10 seconds while it is busy. Off with --disable-log-stats."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Final

from plugserve.core.contracts.engine_facts import EngineStats

log = logging.getLogger("plugserve.throughput")

PERIOD_S: Final = 10.0


class ThroughputLog:
    """The engine's loop calls write once due_s is past, on the loop's clock. snapshot gives the engine's counts."""

    def __init__(self, model: str, snapshot: Callable[[], EngineStats], now_s: float) -> None:
        self._model = model
        self._snapshot = snapshot
        self._last = EngineStats()
        self._last_s = now_s
        self.due_s = now_s + PERIOD_S

    def write(self, now_s: float) -> None:
        """Log one line, unless nothing has been done since the last one and nothing waits."""
        stats, last, seconds = self._snapshot(), self._last, now_s - self._last_s
        self._last, self._last_s, self.due_s = stats, now_s, now_s + PERIOD_S
        num_prompt = stats.num_prompt_tokens - last.num_prompt_tokens
        num_generated = stats.num_generated_tokens - last.num_generated_tokens
        if not (num_prompt or num_generated or stats.num_requests_running or stats.num_requests_waiting):
            return
        log.info(
            "throughput model=%s prompt_tokens_per_s=%.1f generation_tokens_per_s=%.1f running=%d waiting=%d "
            "kv_cache_usage_percent=%.1f prefix_cache_hit_percent=%.1f preemptions=%d",
            self._model,
            num_prompt / seconds,
            num_generated / seconds,
            stats.num_requests_running,
            stats.num_requests_waiting,
            _percent(stats.num_blocks - stats.num_free_blocks, stats.num_blocks),
            _percent(
                stats.num_prefix_hit_tokens - last.num_prefix_hit_tokens,
                stats.num_prefix_queried_tokens - last.num_prefix_queried_tokens,
            ),
            stats.num_preemptions - last.num_preemptions,
        )


class NoThroughputLog:
    """--disable-log-stats is given."""

    due_s = math.inf

    def write(self, now_s: float) -> None: ...


def _percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else 0.0
