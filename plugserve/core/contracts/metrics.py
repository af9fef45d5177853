"""The metrics that a plugin registers itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class CounterValue(Protocol):
    """A count that only grows; it is kept when its process is replaced."""

    def inc(self, amount: float = 1.0) -> None:
        """Add amount. Raises ValueError for a negative one, and for a metric with labels that aren't given."""


class GaugeValue(Protocol):
    """A value that goes up and down. /metrics shows the sum of all processes that run."""

    def set(self, value: float) -> None: ...

    def inc(self, amount: float = 1.0) -> None:
        """Add amount, which may be negative."""


class HistogramValue(Protocol):
    """Counts of values by size."""

    def observe(self, value: float, trace_id: str = "") -> None:
        """Count value. trace_id (32 hexadecimal digits) becomes an example of its bucket, which dashboards link to."""


class MetricCounter(CounterValue, Protocol):
    """A counter, or with labels one for each set of their values."""

    def labels(self, **values: str) -> CounterValue:
        """The counter of these values of all its labels. Keep it where it is used often. Raises ValueError for other
        labels."""


class MetricGauge(GaugeValue, Protocol):
    """A gauge, or with labels one for each set of their values."""

    def labels(self, **values: str) -> GaugeValue: ...


class MetricHistogram(HistogramValue, Protocol):
    """A histogram, or with labels one for each set of their values."""

    def labels(self, **values: str) -> HistogramValue: ...


class PluginMetrics(Protocol):
    """Registers the metrics of one plugin. /metrics shows them, summed over server workers and engines.

    A name begins with the plugin's, "-" and "." as "_", and "_" ("rate_limit_refusals" for the plugin rate-limit); a
    counter's gets "_total" at its end. Units are in the name, and basic: _seconds, _bytes. Raises ConfigError for other
    names, for a name that is registered already, and for labels that Prometheus refuses. Each distinct set of values of
    labels stays in memory: use values of which there are few.
    """

    def counter(self, name: str, help: str, labels: Sequence[str] = ()) -> MetricCounter: ...

    def gauge(self, name: str, help: str, labels: Sequence[str] = ()) -> MetricGauge: ...

    def histogram(self, name: str, help: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> MetricHistogram:
        """buckets are the upper bounds, ascending; one without a bound is added."""
