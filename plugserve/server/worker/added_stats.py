"""The counts of several engines of one model as those of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from plugserve.core.contracts.engine_facts import EngineStats


def added_stats(stats: Sequence[EngineStats]) -> EngineStats:
    """Numbers are added, in tables key by key and in lists place by place."""
    total = msgspec.to_builtins(stats[0])
    for one in stats[1:]:
        total = _added(total, msgspec.to_builtins(one))
    return msgspec.convert(total, EngineStats)


def _added(a: Any, b: Any) -> Any:
    if isinstance(a, dict):
        return {key: _added(a[key], b[key]) if key in a and key in b else a.get(key, b.get(key)) for key in {**a, **b}}
    if isinstance(a, list):
        longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
        return [_added(x, y) for x, y in zip(longer, shorter, strict=False)] + longer[len(shorter) :]
    return a + b if isinstance(a, (int, float)) and isinstance(b, (int, float)) else a
