"""Recorded against replayed times: the table, and the JSON file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from plugserve.replay.recording import Measured, ReplayRequest

Pair = tuple[ReplayRequest, Measured | None, Measured | str]
"""A request, what was recorded of it (None: it had not ended), and what the replay measured, or why it failed."""

_SHARES: Final = (50, 99)
_ROWS: Final = (("TTFT", "ttft_s"), ("ITL", "itl_s"), ("total", "total_s"))


def table(pairs: Sequence[Pair]) -> Iterator[str]:
    """Percentiles in milliseconds, of the requests that both times ended."""
    both = [(recorded, again) for _, recorded, again in pairs if recorded is not None and isinstance(again, Measured)]
    yield f"{'ms':<8}{'recorded':>22}{'replayed':>22}{'replayed / recorded':>24}"
    yield " " * 8 + "".join(f"{f'p{share}':>11}" for _ in range(2) for share in _SHARES) + f"{'p50':>13}{'p99':>11}"
    for title, name in _ROWS:
        columns = [_percentiles([getattr(one[side], name) for one in both]) for side in (0, 1)]
        cells = "".join(f"{_ms(value):>11}" for column in columns for value in column)
        ratios = [_ratio(again, recorded) for recorded, again in zip(*columns, strict=True)]
        yield f"{title:<8}{cells}{ratios[0]:>13}{ratios[1]:>11}"


def as_json(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """One object a request, times in seconds."""
    return [
        {
            "id": request.id,
            "offset_s": round(request.offset_s, 4),
            "prompt_tokens": len(request.prompt),
            "output_tokens": request.params.max_tokens,
            "recorded": _times(recorded),
            "replayed": _times(again) if isinstance(again, Measured) else None,
            "error": again if isinstance(again, str) else None,
        }
        for request, recorded, again in pairs
    ]


def _times(one: Measured | None) -> dict[str, float | None] | None:
    return None if one is None else {name: getattr(one, name) for _, name in _ROWS}


def _percentiles(values: Sequence[float | None]) -> list[float | None]:
    known = [value for value in values if value is not None]
    return [float(np.percentile(known, share)) if known else None for share in _SHARES]


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.1f}"


def _ratio(again_s: float | None, recorded_s: float | None) -> str:
    return f"{again_s / recorded_s:.2f}" if again_s is not None and recorded_s else "-"
