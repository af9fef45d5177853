"""The plot of a comparison: HTML and SVG always, PNG where matplotlib is installed."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from plugserve.core.errors import ConfigError
from plugserve.simulate.figures import HEAD, Figures, cells_of
from plugserve.simulate.simulation import Served
from plugserve.simulate.svg_chart import COLOURS, BarChart, Chart, LineChart, as_svg, cumulative_points

SUFFIXES: Final = (".html", ".svg", ".png")
_MOST_USERS: Final = 8
_STYLE: Final = (
    "body{font:14px system-ui,sans-serif;margin:2rem;color:#1f2328;background:#fff}table{border-collapse:collapse}"
    "td,th{padding:.25rem .7rem;border-bottom:1px solid #d1d9e0;text-align:right}td:first-child,th:first-child"
    "{text-align:left}caption{text-align:left;padding:.5rem 0}svg{max-width:100%;height:auto}"
)

Run = tuple[Figures, Sequence[Served]]


def charts_of(runs: Sequence[Run]) -> list[Chart]:
    """TTFT and TPOT distributions, goodput and fairness, and what each user waited."""
    users = _users(runs)
    return [
        LineChart("Time to first token", "ms", {figures.name: _in_ms(served, "ttft_s") for figures, served in runs}),
        LineChart("Time per output token", "ms", {figures.name: _in_ms(served, "tpot_s") for figures, served in runs}),
        BarChart(
            "Goodput and fairness",
            "share, Jain's index",
            ["goodput", "fairness"],
            {figures.name: [figures.goodput, figures.fairness] for figures, _ in runs},
        ),
        BarChart(
            "Median time to first token by user",
            "ms",
            [user or "(no user)" for user in users],
            {figures.name: [_user_ttft_ms(figures, user) for user in users] for figures, _ in runs},
        ),
    ]


def check_out(path: Path) -> None:
    """Raises ConfigError for a file that could not be written after all the work."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--out must end in {', '.join(SUFFIXES)}, got {str(path)!r}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--out {path}: there is no folder {path.absolute().parent}")
    if path.suffix == ".png":
        _matplotlib()


def write_report(path: Path, runs: Sequence[Run], notes: Sequence[str]) -> None:
    """Write the plot; the HTML file also holds the tables and notes. Raises ConfigError where that fails."""
    charts = charts_of(runs)
    try:
        if path.suffix == ".png":
            _write_png(path, charts)
        elif path.suffix == ".svg":
            path.write_text(as_svg(charts), encoding="utf-8")
        else:
            path.write_text(_page(runs, notes, as_svg(charts)), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {path}: {error.strerror}") from None


def as_json(runs: Sequence[Run], notes: Sequence[str]) -> str:
    """All figures for programs."""
    return json.dumps({"notes": list(notes), "runs": [asdict(figures) for figures, _ in runs]}, indent=2) + "\n"


def _users(runs: Sequence[Run]) -> list[str]:
    """The users with the most requests."""
    counts = {user.user: user.num_requests for figures, _ in runs for user in figures.users}
    return sorted(sorted(counts, key=lambda user: -counts[user])[:_MOST_USERS])


def _user_ttft_ms(figures: Figures, user: str) -> float:
    return next(((one.ttft_p50_s or 0.0) * 1e3 for one in figures.users if one.user == user), 0.0)


def _in_ms(served: Sequence[Served], name: str) -> list[float]:
    return sorted(1e3 * value for one in served if (value := getattr(one, name)) is not None)


def _page(runs: Sequence[Run], notes: Sequence[str], svg: str) -> str:
    main = _html_table(HEAD, [cells_of(figures) for figures, _ in runs], "Times in ms.")
    user_rows = [
        (figures.name, user.user or "(no user)", str(user.num_requests), str(user.num_tokens),
         _text_ms(user.ttft_p50_s), _text_ms(user.ttft_p99_s), "-" if user.share is None else f"{user.share:.3f}")
        for figures, _ in runs
        for user in figures.users[:100]
    ]  # fmt: skip
    head = ("scheduler", "user", "requests", "tokens", "TTFT p50", "p99", "share")
    by_user = _html_table(
        head, user_rows, "By user. Share: 1 is as fast as on an n-th of the machine of one's own, for n users."
    )
    listed = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>plugserve simulate</title>'
        f"<style>{_STYLE}</style></head><body><h1>plugserve simulate</h1><ul>{listed}</ul>{main}{svg}{by_user}"
        "</body></html>\n"
    )


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><caption>{html.escape(caption)}</caption>{line(head, 'th')}{body}</table>"


def _text_ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.0f}"


# ---------------------------------------------------------------- PNG


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ConfigError(
            "--out with .png needs matplotlib: pip install 'plugserve[simulate]', or write .html or .svg"
        ) from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def _write_png(path: Path, charts: Sequence[Chart]) -> None:
    pyplot = _matplotlib()
    figure, axes = pyplot.subplots(-(-len(charts) // 2), 2, figsize=(11, 7), layout="constrained")
    for axis, chart in zip(axes.flat, charts, strict=False):
        axis.set_title(f"{chart.title} ({chart.unit})", fontsize=10)
        if isinstance(chart, LineChart):
            axis.set_xscale("log")
            for number, (name, values) in enumerate(chart.values.items()):
                points = cumulative_points(values) if values else []
                xs, ys = [x for x, _ in points], [y for _, y in points]
                axis.plot(xs, ys, label=name, color=COLOURS[number % len(COLOURS)])
        else:
            width = 0.8 / max(1, len(chart.bars))
            for number, (name, heights) in enumerate(chart.bars.items()):
                places = [group + number * width for group in range(len(chart.groups))]
                axis.bar(places, heights, width * 0.92, label=name, color=COLOURS[number % len(COLOURS)])
            middle = width * (len(chart.bars) - 1) / 2
            axis.set_xticks([group + middle for group in range(len(chart.groups))], chart.groups)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
