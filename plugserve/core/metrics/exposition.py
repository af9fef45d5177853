"""Metrics as text: Prometheus' format 0.0.4, and OpenMetrics 1.0, which has exemplars.

https://prometheus.io/docs/instrumenting/exposition_formats/ and https://prometheus.io/docs/specs/om/open_metrics_spec/
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from plugserve.core.metrics.store_reader import Exemplar

PROMETHEUS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_MOST_KEPT: Final = 20_000  # series whose lines' beginnings are kept


@dataclass(slots=True)
class Sample:
    """A series to show: labels with their values; a number, or a histogram's counts (not cumulative) and its sum."""

    labels: tuple[tuple[str, str], ...]
    value: float | np.ndarray[Any, np.dtype[np.float64]]
    exemplars: Mapping[int, Exemplar] = field(default_factory=dict)


@dataclass(slots=True)
class Shown:
    """A family to show. A counter's name has no "_total"."""

    name: str
    kind: str
    help: str
    samples: Sequence[Sample] = ()
    buckets: tuple[float, ...] = ()


class Exposition:
    """Writes families; keeps the beginnings of lines, which repeat from one scrape to the next."""

    def __init__(self) -> None:
        self._beginnings: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = {}

    def write(self, families: Iterable[Shown], *, is_open: bool = False) -> bytes:
        """The text; is_open for OpenMetrics."""
        lines: list[str] = []
        if len(self._beginnings) > _MOST_KEPT:
            self._beginnings.clear()
        for family in families:
            total = "_total" if family.kind == "counter" and not is_open else ""
            lines.append(f"# HELP {family.name}{total} {_escaped_help(family.help, is_open)}\n")
            lines.append(f"# TYPE {family.name}{total} {family.kind}\n")
            for sample in family.samples:
                beginnings = self._beginnings.get((family.name, sample.labels))
                if beginnings is None:
                    beginnings = self._beginnings[family.name, sample.labels] = _beginnings(family, sample.labels)
                _add_lines(lines, beginnings, sample, is_open)
        if is_open:
            lines.append("# EOF\n")
        return "".join(lines).encode()


def _add_lines(lines: list[str], beginnings: list[str], sample: Sample, is_open: bool) -> None:
    value = sample.value
    if not isinstance(value, np.ndarray):
        lines.append(f"{beginnings[0]}{_number(value)}\n")
        return
    counts: list[float] = np.cumsum(value[:-1]).tolist()
    if is_open and sample.exemplars:
        ends = [_exemplar(sample.exemplars.get(bucket)) for bucket in range(len(counts))]
        lines += [f"{line}{count!r}{end}\n" for line, count, end in zip(beginnings, counts, ends, strict=False)]
    else:
        lines += [f"{line}{count!r}\n" for line, count in zip(beginnings, counts, strict=False)]
    lines.append(f"{beginnings[-2]}{counts[-1]!r}\n")
    lines.append(f"{beginnings[-1]}{_number(float(value[-1]))}\n")


def _exemplar(exemplar: Exemplar | None) -> str:
    if exemplar is None:
        return ""
    return f' # {{trace_id="{exemplar.trace_id}"}} {_number(exemplar.value)} {exemplar.at_s:.3f}'


def _beginnings(family: Shown, labels: tuple[tuple[str, str], ...]) -> list[str]:
    """The lines of a series without their numbers: a histogram's buckets, count and sum."""
    braces = _braces(labels)
    if family.kind == "counter":
        return [f"{family.name}_total{braces} "]
    if family.kind != "histogram":
        return [f"{family.name}{braces} "]
    buckets = [f"{family.name}_bucket{_braces((*labels, ('le', _number(bound))))} " for bound in family.buckets]
    return [*buckets, f"{family.name}_count{braces} ", f"{family.name}_sum{braces} "]


def _braces(labels: tuple[tuple[str, str], ...]) -> str:
    shown = [f'{name}="{_escaped(value)}"' for name, value in sorted(labels)]
    return f"{{{','.join(shown)}}}" if shown else ""


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _escaped_help(text: str, is_open: bool) -> str:
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
    return escaped.replace('"', '\\"') if is_open else escaped
