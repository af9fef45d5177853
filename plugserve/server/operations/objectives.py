"""Objectives of requests' times (--goodput), and which of them a request missed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plugserve.server.operations.request_metrics import RequestMeasures


class Objectives:
    """Milliseconds by name: ttft (to the first token), tpot (per token after the first, on average), e2el (in all)."""

    def __init__(self, limits_ms: Mapping[str, float] | None = None) -> None:
        self._limits_s = {name: limit_ms / 1000 for name, limit_ms in (limits_ms or {}).items()}

    @classmethod
    def of(cls, texts: Iterable[str]) -> Objectives:
        """From --goodput's NAME:MILLISECONDS texts, which are valid."""
        return cls({name: float(limit) for name, _, limit in (text.partition(":") for text in texts)})

    def __bool__(self) -> bool:
        return bool(self._limits_s)

    @property
    def names(self) -> Collection[str]:
        return self._limits_s.keys()

    def missed(self, request: RequestMeasures) -> list[str]:
        """Those that the request missed. A time that it doesn't have, such as tpot of one token, is within any."""
        times_s = {"ttft": request.first_token_s, "tpot": request.decode_s_per_token, "e2el": request.total_s}
        return [name for name, limit_s in self._limits_s.items() if (times_s[name] or 0.0) > limit_s]
