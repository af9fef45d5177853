"""A snapshot of the live feed as lines of text."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

_MAP_WIDTH: Final = 40
_MOST_PLUGINS: Final = 4
_LEAST_REQUESTS: Final = 3
_GIB: Final = 1 << 30
_COLUMNS: Final = "{:<9}{:<9}{:>7}{:>7}{:>6}{:>8}{:>8}{:>8}{:>8}  {}"
_TITLES: Final = ("arrived", "state", "prompt", "cached", "out", "queue", "prefill", "decode", "total", "why")


def screen(
    snapshot: Mapping[str, Any], requests: Sequence[Mapping[str, Any]], url: str, *, width: int, height: int
) -> list[str]:
    """At most height lines of at most width characters. Requests get what the rest leaves."""
    lines = [*_head(snapshot, url), ""]
    for model in snapshot["models"]:
        lines += _model_lines(model)
    lines += ["", *_plugin_lines(snapshot["plugins"])]
    num_left = height - len(lines) - 2
    if num_left < _LEAST_REQUESTS:
        lines = lines[: max(1, height - 2 - _LEAST_REQUESTS)]
        num_left = _LEAST_REQUESTS
    lines += ["", _COLUMNS.format(*_TITLES), *(_request_line(one) for one in requests[:num_left])]
    return [_printable(line)[:width] for line in lines[:height]]


def _head(snapshot: Mapping[str, Any], url: str) -> Iterator[str]:
    engines = [engine for model in snapshot["models"] for engine in model["engines"]]
    uptime = f", up {_duration(snapshot['uptime_s'])}" if snapshot["uptime_s"] is not None else ""
    yield f"plugserve {snapshot['version']}  {url}  {_clock(snapshot['time'])}{uptime}"
    workers = " ".join(str(worker["requests"]) for worker in snapshot["workers"])
    yield (
        f"requests: {_sum(engines, 'running')} run, {_sum(engines, 'waiting')} wait; "
        f"tokens/s: {_sum(engines, 'generation_tokens_per_s')} out, {_sum(engines, 'prompt_tokens_per_s')} in; "
        f"requests of each worker: {workers or '-'}"
    )
    latency = snapshot["latency"]
    titles = (("TTFT", "ttft_ms"), ("ITL", "itl_ms"), ("whole request", "e2e_ms"))
    parts = [f"{title} {' / '.join(_number(value) for value in latency[name].values())}" for title, name in titles]
    yield f"ms, p50 / p90 / p99 of {latency['window_s']:.0f} s: {', '.join(parts)}"


def _model_lines(model: Mapping[str, Any]) -> Iterator[str]:
    facts = [model["state"]]
    if model["device"] is not None:
        facts += [f"{model['dtype']} on {model['device']}", f"weights {_gib(model['weight_bytes'])}"]
        facts += [f"KV cache {_gib(model['kv_cache_bytes'])}", f"context {model['max_model_len']}"]
    if model["adapters"]:
        facts.append(f"adapters {', '.join(model['adapters'])}")
    yield f"{model['name']}: {', '.join(facts)}"
    for engine in model["engines"]:
        total = engine["kv_blocks_total"]
        used, cached = engine["kv_blocks_used"], engine["kv_blocks_cached"] or 0
        share = f"{100 * used / total:.0f} % used, {100 * cached / total:.0f} % cached of {total}" if total else "-"
        yield (
            f"  engine {engine['engine']} pid {engine['pid']}: {engine['running']} run, {engine['waiting']} wait; "
            f"blocks {share}; prefix hits {_share(engine['prefix_hit_rate'])}, drafts accepted "
            f"{_share(engine['draft_acceptance'])}; steps p50 {_number(engine['step_ms_p50'])} ms, p99 "
            f"{_number(engine['step_ms_p99'])} ms"
        )
        if engine["kv_map"]:
            yield f"  [{_bar(base64.b64decode(engine['kv_map']))}]  # in use, : cached"


def _bar(cells: bytes) -> str:
    """The map of the blocks, each character for a run of its cells: the fullest decides."""
    width = min(_MAP_WIDTH, len(cells))
    runs = [cells[i * len(cells) // width : (i + 1) * len(cells) // width] for i in range(width)]
    return "".join("#" if max(run) > 127 else ":" if max(run) else "." for run in runs)


def _plugin_lines(plugins: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    shown = sorted(plugins, key=lambda one: (-one["failures"], -one["time_ms"]))[:_MOST_PLUGINS]
    for one in shown:
        failures = f", {one['failures']} failures" if one["failures"] else ""
        yield f"plugin {one['name']} {one['kind']}: {one['calls']} calls, {one['time_ms'] / 1e3:.2f} s{failures}"


def _request_line(one: Mapping[str, Any]) -> str:
    why = one["why"] or (one["finish_reason"] if one["state"] == "failed" else "") or ""
    counts = (one["prompt_tokens"], one["cached_tokens"], one["output_tokens"])
    spans = (_ms(one[name]) for name in ("queue_ms", "prefill_ms", "decode_ms", "total_ms"))
    return _COLUMNS.format(_clock(one["arrived"]), one["state"], *counts, *spans, why).rstrip()


def _printable(line: str) -> str:
    """Without control characters that a name may hold."""
    return line if line.isprintable() else "".join(one if one.isprintable() else "?" for one in line)


def _clock(epoch_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(epoch_s))


def _sum(engines: Sequence[Mapping[str, Any]], name: str) -> str:
    values = [engine[name] for engine in engines if engine[name] is not None]
    return _number(sum(values)) if values else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def _ms(value: float) -> str:
    return f"{value / 1e3:.1f}s" if value >= 1000 else f"{value:.0f}ms"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.2f} GiB"


def _duration(seconds: float) -> str:
    minutes, whole_s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{whole_s:02d}"
