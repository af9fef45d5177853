"""Makes the live feed's objects: a snapshot of models, engines, latencies, plugins and workers; the last requests."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from plugserve.core.contracts.engine_facts import EngineInfo, EngineStats
from plugserve.core.flight.flight_log import FlightDetail, FlightLog, Records
from plugserve.core.flight.request_story import RequestStory
from plugserve.core.wire.messages import FINISH_COMPLETE, FINISH_LENGTH, FINISH_STOP
from plugserve.server.operations.live_sources import LiveSources
from plugserve.server.operations.worker_notes import WorkerNotes

WINDOW_S: Final = 60.0
_RATE_S: Final = 5.0
_FRESH_S: Final = 0.5
_STATES: Final = {"up": "loaded", "unloading": "loaded", "unloaded": "stopped", "dead": "failed"}
_ANSWERED: Final = (FINISH_STOP, FINISH_LENGTH, FINISH_COMPLETE)
_SHARES: Final = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model of the table as the worker's event loop knows it. engines are the indices of its engines. state is
    ServedModel's; stats are the engines', where they record nothing."""

    name: str
    engines: Sequence[int]
    state: str
    info: EngineInfo | None
    adapters: tuple[str, ...] = ()
    pid: int = 0
    stats: EngineStats | None = None


class SharedAnswer:
    """One answer for all who ask within half a second. For one event loop."""

    def __init__(self) -> None:
        self._data = b""
        self._made_s = float("-inf")
        self._lock = asyncio.Lock()

    async def get(self, make: Callable[[], Awaitable[bytes]]) -> bytes:
        """The newest answer, or what make returns."""
        async with self._lock:
            if time.monotonic() - self._made_s > _FRESH_S:
                self._data = await make()
                self._made_s = time.monotonic()
            return self._data


@dataclass(slots=True)
class _Window:
    """The latencies of the last WINDOW_S in seconds; gaps between tokens are weighted by the rows that waited."""

    ttft_s: list[np.ndarray[Any, Any]] = field(default_factory=list)
    e2e_s: list[np.ndarray[Any, Any]] = field(default_factory=list)
    itl_s: list[np.ndarray[Any, Any]] = field(default_factory=list)
    itl_weights: list[np.ndarray[Any, Any]] = field(default_factory=list)

    def add(self, requests: Records, steps: Records, now_s: float) -> None:
        began_s = requests["arrival_s"] - requests["before_s"]
        first_s, end_s = requests["first_token_s"], requests["end_s"]
        self.ttft_s.append((first_s - began_s)[(first_s > now_s - WINDOW_S)])
        is_answered = np.isin(requests["finish"], _ANSWERED) & (end_s > now_s - WINDOW_S)
        self.e2e_s.append((end_s - began_s)[is_answered])
        decoding = steps[(steps["end_s"] > now_s - WINDOW_S) & (steps["num_decoding"] > 0)]
        self.itl_s.append(decoding["interval_s"])
        self.itl_weights.append(decoding["num_decoding"])

    def as_dict(self) -> dict[str, Any]:
        weights = np.concatenate(self.itl_weights) if self.itl_weights else np.zeros(0)
        return {
            "ttft_ms": _percentiles(self.ttft_s),
            "itl_ms": _percentiles(self.itl_s, weights),
            "e2e_ms": _percentiles(self.e2e_s),
            "window_s": WINDOW_S,
        }


class LiveFeed:
    """Reads sources, which takes a few milliseconds: call it in a thread."""

    def __init__(self, sources: LiveSources, version: str) -> None:
        self._sources = sources
        self._version = version

    def snapshot(self, models: Sequence[ModelFacts], own: WorkerNotes) -> dict[str, Any]:
        """own are this worker's notes as they are now."""
        now_s = time.monotonic()
        window = _Window()
        plugins = _PluginCounts()
        described = []
        for model in models:
            logs = [self._sources.flight(index) for index in model.engines]
            described.append(self._model(model, logs, window, plugins, now_s))
        workers = {one.index: one for one in self._sources.workers()} | {own.index: own}
        for one in workers.values():
            plugins.add(one)
        started_s = self._sources.started_s
        return {
            "time": round(time.time(), 3),
            "version": self._version,
            "uptime_s": round(time.time() - started_s, 1) if started_s is not None else None,
            "models": described,
            "latency": window.as_dict(),
            "plugins": plugins.as_list(),
            "workers": [
                {"index": one.index, "pid": one.pid, "requests": one.requests}
                for one in sorted(workers.values(), key=lambda one: one.index)
            ],
        }

    def requests(self, models: Sequence[ModelFacts], own: WorkerNotes, limit: int) -> dict[str, Any]:
        """The last limit requests of all models, the newest first."""
        unread: dict[str, float] = {}
        for notes in (*self._sources.workers(), own):
            unread |= notes.unread_s
        found: list[dict[str, Any]] = []
        for model in models:
            for number, index in enumerate(model.engines):
                log = self._sources.flight(index)
                if log is not None:
                    found += _newest(log, model.name, number, unread, limit)
        return {"requests": heapq.nlargest(limit, found, key=lambda one: one["arrived"])}

    def _model(
        self,
        model: ModelFacts,
        logs: Sequence[FlightLog | None],
        window: _Window,
        plugins: _PluginCounts,
        now_s: float,
    ) -> dict[str, Any]:
        info = model.info
        engines = []
        if model.state in ("up", "unloading"):
            recorded = [(number, log) for number, log in enumerate(logs) if log is not None]
            engines = [_recorded(number, log, window, plugins, now_s) for number, log in recorded] or [_plain(model)]
        return {
            "name": model.name,
            "state": _STATES.get(model.state, model.state),
            "dtype": info.dtype if info is not None else None,
            "device": info.device if info is not None else None,
            "weight_bytes": info.weight_bytes if info is not None else None,
            "kv_cache_bytes": info.kv_cache_bytes if info is not None else None,
            "max_model_len": info.max_model_len if info is not None else None,
            "adapters": list(model.adapters),
            "engines": engines,
        }


def _recorded(number: int, log: FlightLog, window: _Window, plugins: _PluginCounts, now_s: float) -> dict[str, Any]:
    """An engine, number of its model, from its flight recorder's file."""
    log.watch()
    gauges, detail, steps = log.gauges(), log.detail(), log.steps()
    window.add(log.requests(), steps, now_s)
    plugins.add(detail)
    recent = steps[steps["end_s"] > now_s - _RATE_S]
    durations_s = steps["duration_s"][steps["end_s"] > now_s - WINDOW_S]
    is_busy = bool(len(steps)) and steps[-1]["end_s"] > gauges.updated_s
    newest = steps[-1] if is_busy else None
    return _counts(number, gauges.stats, detail.kv_map) | {
        "pid": log.facts.pid,
        "running": int(newest["num_running"]) if newest is not None else gauges.stats.num_requests_running,
        "waiting": int(newest["num_waiting"]) if newest is not None else gauges.stats.num_requests_waiting,
        "kv_blocks_used": gauges.stats.num_blocks - int(newest["num_free_blocks"])
        if newest is not None
        else gauges.num_used_blocks,
        "kv_blocks_cached": gauges.num_cached_blocks,
        "generation_tokens_per_s": round(float(recent["num_generated_tokens"].sum()) / _RATE_S, 1),
        "prompt_tokens_per_s": round(float(recent["num_prompt_tokens"].sum()) / _RATE_S, 1),
        "step_ms_p50": _percentile_ms(durations_s, 50),
        "step_ms_p99": _percentile_ms(durations_s, 99),
    }


def _plain(model: ModelFacts) -> dict[str, Any]:
    """An engine that records nothing, from the newest counts that it sent."""
    stats = model.stats if model.stats is not None else EngineStats()
    return _counts(0, stats, "") | {
        "pid": model.pid or None,
        "running": stats.num_requests_running,
        "waiting": stats.num_requests_waiting,
        "kv_blocks_used": stats.num_blocks - stats.num_free_blocks,
        "kv_blocks_cached": None,
        "generation_tokens_per_s": None,
        "prompt_tokens_per_s": None,
        "step_ms_p50": None,
        "step_ms_p99": None,
    }


def _counts(number: int, stats: EngineStats, kv_map: str) -> dict[str, Any]:
    """What an engine counts from its start."""
    queried, drafted = stats.num_prefix_queried_tokens, stats.num_draft_tokens
    return {
        "engine": number,
        "kv_blocks_total": stats.num_blocks,
        "kv_map": kv_map,
        "prefix_hit_rate": round(stats.num_prefix_hit_tokens / queried, 4) if queried else None,
        "draft_acceptance": round(stats.num_accepted_draft_tokens / drafted, 4) if drafted else None,
        "preemptions": stats.num_preemptions,
    }


def _newest(log: FlightLog, model: str, engine: int, unread: Mapping[str, float], limit: int) -> list[dict[str, Any]]:
    now_s, gauges = time.monotonic(), log.gauges()
    found = []
    for record in log.requests()[-limit:]:
        unread_s = unread.get(bytes(record["id"]).decode(errors="replace"), 0.0)
        story = RequestStory.of(record, now_s, gauges.updated_s, unread_s)
        found.append(story.as_dict(model, engine, gauges.epoch_offset_s))
    return found


class _PluginCounts:
    """Sums of calls over processes, by plugin and call."""

    def __init__(self) -> None:
        self._calls: defaultdict[str, int] = defaultdict(int)
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._errors: defaultdict[str, int] = defaultdict(int)

    def add(self, counts: WorkerNotes | FlightDetail) -> None:
        for key, count in counts.plugin_calls.items():
            self._calls[key] += count
        for key, seconds in counts.plugin_seconds.items():
            self._seconds[key] += seconds
        for key, count in counts.plugin_errors.items():
            self._errors[key] += count

    def as_list(self) -> list[dict[str, Any]]:
        """The busiest first; those that were never called are left out."""
        keys = {key for key in (*self._calls, *self._errors) if self._calls[key] or self._errors[key]}
        return [
            {
                "name": key.rpartition(" ")[0],
                "kind": key.rpartition(" ")[2],
                "calls": self._calls[key],
                "time_ms": round(1e3 * self._seconds[key], 3),
                "failures": self._errors[key],
            }
            for key in sorted(keys, key=lambda one: (-self._seconds[one], one))
        ]


def _percentiles(parts: Iterable[np.ndarray[Any, Any]], weights: np.ndarray[Any, Any] | None = None) -> dict[str, Any]:
    """Percentiles in milliseconds, None where there is nothing."""
    values = np.concatenate(list(parts) or [np.zeros(0)])
    if weights is None:
        return {f"p{share}": _percentile_ms(values, share) for share in _SHARES}
    order = np.argsort(values)
    ends = np.cumsum(weights[order])
    found = {}
    for share in _SHARES:
        at = int(np.searchsorted(ends, ends[-1] * share / 100)) if len(values) else -1
        found[f"p{share}"] = round(1e3 * float(values[order[min(at, len(values) - 1)]]), 2) if at >= 0 else None
    return found


def _percentile_ms(values_s: np.ndarray[Any, Any], share: int) -> float | None:
    return round(1e3 * float(np.percentile(values_s, share)), 2) if len(values_s) else None
