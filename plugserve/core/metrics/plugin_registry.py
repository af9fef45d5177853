"""The metrics that plugins register in a process."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from plugserve.core.contracts.metrics import MetricCounter, MetricGauge, MetricHistogram
from plugserve.core.errors import ConfigError
from plugserve.core.metrics.metric_handles import Counter, Gauge, Histogram
from plugserve.core.metrics.metric_store import MetricStore

_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)
_LABEL: Final = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)
_ENDINGS: Final = ("_total", "_bucket", "_count", "_sum", "_created", "_info")
_RESERVED: Final = ("le", "quantile")


class PluginRegistry:
    """PluginMetrics of one plugin. Without a name for it (the conformance kit knows none), its metrics may begin with
    anything."""

    def __init__(self, plugin: str, store: MetricStore) -> None:
        self._prefix = re.sub(r"[^a-zA-Z0-9_]", "_", plugin) + "_" if plugin else ""
        self._store = store
        self._names: set[str] = set()

    def counter(self, name: str, help: str, labels: Sequence[str] = ()) -> MetricCounter:
        self._check(name, help, labels)
        return Counter(self._store, name, help, tuple(labels))

    def gauge(self, name: str, help: str, labels: Sequence[str] = ()) -> MetricGauge:
        self._check(name, help, labels)
        return Gauge(self._store, name, help, tuple(labels))

    def histogram(self, name: str, help: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> MetricHistogram:
        self._check(name, help, labels)
        bounds = tuple(float(bound) for bound in buckets if bound != float("inf"))
        if not bounds or not all(low < high for low, high in pairwise(bounds)):
            raise ConfigError(f"the buckets of the metric {name!r} must ascend, got {list(buckets)}")
        return Histogram(self._store, name, help, bounds, tuple(labels))

    def _check(self, name: str, help: str, labels: Sequence[str]) -> None:
        if not name.startswith(self._prefix) or not _NAME.fullmatch(name) or name == self._prefix:
            raise ConfigError(
                f"the metric {name!r} must begin with {self._prefix!r} and have letters, digits and underscores only"
            )
        ending = next((ending for ending in _ENDINGS if name.endswith(ending)), None)
        if ending is not None:
            raise ConfigError(f"the metric {name!r} must not end with {ending!r}, which /metrics adds where it belongs")
        if name in self._names:
            raise ConfigError(f"the metric {name!r} is registered twice; keep the object that the first call returned")
        if not help.strip():
            raise ConfigError(f"the metric {name!r} needs a help text")
        if isinstance(labels, str) or len(set(labels)) != len(labels):
            raise ConfigError(f"the labels of the metric {name!r} must be a list of different names, got {labels!r}")
        for label in labels:
            if not _LABEL.fullmatch(label) or label in _RESERVED:
                raise ConfigError(f"the metric {name!r} can't have a label {label!r}; use letters, digits and _")
        self._names.add(name)
