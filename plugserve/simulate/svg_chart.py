"""Two kinds of chart as SVG text: lines over a logarithmic axis, and grouped bars."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

COLOURS: Final = ("#0969da", "#cf222e", "#1a7f37", "#9a6700", "#8250df", "#57606a", "#bf3989", "#0a7ea4")
WIDTH: Final = 460
HEIGHT: Final = 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 46, 36
_PLOT_WIDTH: Final = WIDTH - _LEFT - _RIGHT
_PLOT_HEIGHT: Final = HEIGHT - _TOP - _BOTTOM


@dataclass(frozen=True, slots=True)
class LineChart:
    """Shares of values up to x (a cumulative distribution) by name. values are in ascending order."""

    title: str
    unit: str
    values: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class BarChart:
    """For each group, one bar a name. bars[name] has one value a group."""

    title: str
    unit: str
    groups: Sequence[str]
    bars: Mapping[str, Sequence[float]]


Chart = LineChart | BarChart


def as_svg(charts: Sequence[Chart], columns: int = 2) -> str:
    """All charts in a grid, as one SVG document."""
    rows = -(-len(charts) // columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{columns * WIDTH}" height="{rows * HEIGHT}" '
        f'viewBox="0 0 {columns * WIDTH} {rows * HEIGHT}" font-family="system-ui, sans-serif" font-size="11" '
        'fill="#1f2328"><rect width="100%" height="100%" fill="#ffffff"/>'
    ]
    for index, chart in enumerate(charts):
        x, y = index % columns * WIDTH, index // columns * HEIGHT
        draw = _lines(chart) if isinstance(chart, LineChart) else _bars(chart)
        parts.append(f'<g transform="translate({x},{y})">{draw}</g>')
    return "".join(parts) + "</svg>"


def cumulative_points(values: Sequence[float], most: int = 200) -> list[tuple[float, float]]:
    """(value, share of values that are at most that) at up to most places, ends included."""
    count = len(values)
    places = sorted({round(n * (count - 1) / max(1, min(most, count) - 1)) for n in range(min(most, count))})
    return [(values[place], (place + 1) / count) for place in places]


def _lines(chart: LineChart) -> str:
    positive = [value for values in chart.values.values() for value in values if value > 0]
    low = 10 ** math.floor(math.log10(min(positive, default=1.0)))
    high = 10 ** math.ceil(math.log10(max(positive, default=10.0)) + 1e-9)
    decades = max(1, round(math.log10(high / low)))

    def x_of(value: float) -> float:
        return _LEFT + _PLOT_WIDTH * math.log10(max(value, low) / low) / decades

    def y_of(share: float) -> float:
        return _TOP + _PLOT_HEIGHT * (1 - share)

    parts = [_heading(f"{chart.title} ({chart.unit}): share of requests up to", list(chart.values))]
    for step in range(5):
        parts.append(_grid_row(y_of(step / 4), f"{step * 25} %"))
    for decade in range(decades + 1):
        x = x_of(low * 10**decade)
        parts.append(f'<path d="M{x:.1f} {_TOP}v{_PLOT_HEIGHT}" stroke="#d1d9e0"/>')
        parts.append(_text(x, HEIGHT - _BOTTOM + 15, f"{low * 10**decade:g}", "middle"))
    for colour, values in zip(_colours(len(chart.values)), chart.values.values(), strict=True):
        if values:
            path = "L".join(f"{x_of(value):.1f} {y_of(share):.1f}" for value, share in cumulative_points(values))
            parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
    return "".join(parts)


def _bars(chart: BarChart) -> str:
    high = _nice(max((value for values in chart.bars.values() for value in values), default=1.0))
    parts = [_heading(f"{chart.title} ({chart.unit})", list(chart.bars))]
    for step in range(5):
        y = _TOP + _PLOT_HEIGHT * (1 - step / 4)
        parts.append(_grid_row(y, f"{high * step / 4:.3g}"))
    group_width = _PLOT_WIDTH / max(1, len(chart.groups))
    bar_width = group_width * 0.8 / max(1, len(chart.bars))
    for group, label in enumerate(chart.groups):
        left = _LEFT + group * group_width + group_width * 0.1
        for number, (colour, values) in enumerate(zip(_colours(len(chart.bars)), chart.bars.values(), strict=True)):
            height = _PLOT_HEIGHT * values[group] / high
            parts.append(
                f'<rect x="{left + number * bar_width:.1f}" y="{_TOP + _PLOT_HEIGHT - height:.1f}" '
                f'width="{bar_width * 0.92:.1f}" height="{height:.1f}" fill="{colour}"/>'
            )
        parts.append(_text(left + group_width * 0.4, HEIGHT - _BOTTOM + 15, _shortened(label), "middle"))
    return "".join(parts)


def _heading(title: str, names: Sequence[str]) -> str:
    parts = [f'<text x="{_LEFT}" y="16" font-weight="600">{html.escape(title)}</text>']
    x = float(_LEFT)
    for colour, name in zip(_colours(len(names)), names, strict=True):
        parts.append(f'<rect x="{x:.0f}" y="25" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(x + 14, 34, _shortened(name), "start"))
        x += 26 + 6.2 * len(_shortened(name))
    return "".join(parts)


def _grid_row(y: float, label: str) -> str:
    line = f'<path d="M{_LEFT} {y:.1f}h{_PLOT_WIDTH}" stroke="#d1d9e0"/>'
    return line + _text(_LEFT - 5, y + 4, label, "end")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _colours(count: int) -> list[str]:
    return [COLOURS[n % len(COLOURS)] for n in range(count)]


def _shortened(text: str) -> str:
    return text if len(text) <= 18 else text[:17] + "…"


def _nice(value: float) -> float:
    """The next number above value that divides well by four."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 4, 6, 8, 10) if factor * power >= value * 0.9999)
