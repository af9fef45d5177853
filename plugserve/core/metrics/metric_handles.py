"""Counters, gauges and histograms that write into a process's store."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable
from typing import Generic, TypeVar

from plugserve.core.metrics.metric_store import EXEMPLAR_CELLS, Family, MetricStore


class CounterSeries:
    """One counter's cell."""

    __slots__ = ("_cells", "_lock", "_offset")

    def __init__(self, store: MetricStore, family: Family, values: tuple[str, ...]) -> None:
        self._cells, self._lock = store.cells, store.lock
        self._offset = store.offset(family, values)

    def inc(self, amount: float = 1.0) -> None:
        if not amount >= 0:
            raise ValueError(f"a counter can't fall, got {amount}")
        with self._lock:
            self._cells[self._offset] += amount


class GaugeSeries:
    """One gauge's cell."""

    __slots__ = ("_cells", "_lock", "_offset")

    def __init__(self, store: MetricStore, family: Family, values: tuple[str, ...]) -> None:
        self._cells, self._lock = store.cells, store.lock
        self._offset = store.offset(family, values)

    def set(self, value: float) -> None:
        self._cells[self._offset] = value

    def inc(self, amount: float = 1.0) -> None:
        with self._lock:
            self._cells[self._offset] += amount


class HistogramSeries:
    """One histogram's cells."""

    __slots__ = ("_bits", "_bounds", "_cells", "_examples", "_lock", "_offset", "_sum")

    def __init__(self, store: MetricStore, family: Family, values: tuple[str, ...]) -> None:
        self._cells, self._bits, self._lock = store.cells, store.bits, store.lock
        self._bounds = family.buckets[:-1]
        self._offset = store.offset(family, values)
        self._sum = self._offset + len(family.buckets)
        self._examples = self._sum + 1 if family.has_exemplars else 0

    def observe(self, value: float, trace_id: str = "", times: int = 1) -> None:
        """Count value, times times. trace_id becomes the exemplar of its bucket."""
        bucket = bisect_left(self._bounds, value)
        with self._lock:
            self._cells[self._offset + bucket] += times
            self._cells[self._sum] += value * times
        if trace_id and self._examples:
            self._note_example(bucket, value, int(trace_id, 16))

    def _note_example(self, bucket: int, value: float, trace_id: int) -> None:
        at = self._examples + bucket * EXEMPLAR_CELLS
        with self._lock:
            self._cells[at + 1] = 0.0  # nothing reads it meanwhile
            self._cells[at] = value
            self._bits[at + 2] = trace_id >> 64
            self._bits[at + 3] = trace_id & (1 << 64) - 1
            self._cells[at + 1] = time.time()


Series = TypeVar("Series", CounterSeries, GaugeSeries, HistogramSeries)


class _Metric(Generic[Series]):
    """A family, and its series by values of labels."""

    def __init__(self, store: MetricStore, family: Family, series: type[Series]) -> None:
        store.declare(family)
        self._store = store
        self._family = family
        self._make: Callable[[MetricStore, Family, tuple[str, ...]], Series] = series
        self._series: dict[tuple[str, ...], Series] = {}
        self._only: Series | None = self._of(()) if not family.labels else None

    def labels(self, *values: str, **named: str) -> Series:
        """The series of these values, in the order of the labels or by name."""
        family = self._family
        if named:
            if values or named.keys() != set(family.labels):
                raise ValueError(f"the metric {family.name} has the labels {', '.join(family.labels) or 'none'}")
            values = tuple(named[label] for label in family.labels)
        found = self._series.get(values)
        return found if found is not None else self._of(values)

    def _of(self, values: tuple[str, ...]) -> Series:
        if len(values) != len(self._family.labels):
            raise ValueError(f"the metric {self._family.name} has {len(self._family.labels)} labels, got {len(values)}")
        texts = tuple(str(value) for value in values)
        series = self._series[values] = self._make(self._store, self._family, texts)
        return series

    @property
    def _one(self) -> Series:
        if self._only is None:
            raise ValueError(f"the metric {self._family.name} needs labels({', '.join(self._family.labels)})")
        return self._only


class Counter(_Metric[CounterSeries]):
    def __init__(self, store: MetricStore, name: str, help: str, labels: tuple[str, ...] = ()) -> None:
        super().__init__(store, Family(name, "counter", help, labels), CounterSeries)

    def inc(self, amount: float = 1.0) -> None:
        self._one.inc(amount)


class Gauge(_Metric[GaugeSeries]):
    def __init__(self, store: MetricStore, name: str, help: str, labels: tuple[str, ...] = ()) -> None:
        super().__init__(store, Family(name, "gauge", help, labels), GaugeSeries)

    def set(self, value: float) -> None:
        self._one.set(value)

    def inc(self, amount: float = 1.0) -> None:
        self._one.inc(amount)


class Histogram(_Metric[HistogramSeries]):
    """buckets are the upper bounds, without the infinite one."""

    def __init__(
        self,
        store: MetricStore,
        name: str,
        help: str,
        buckets: tuple[float, ...],
        labels: tuple[str, ...] = (),
        *,
        has_exemplars: bool = True,
    ) -> None:
        family = Family(name, "histogram", help, labels, (*buckets, math.inf), has_exemplars)
        super().__init__(store, family, HistogramSeries)

    def observe(self, value: float, trace_id: str = "") -> None:
        self._one.observe(value, trace_id)
