"""The metrics that Prometheus reads.

Each server worker and engine counts into a store of its own in shared memory (core/metrics); whichever worker is asked
shows the sums. Engines' own figures are made from a snapshot at each scrape.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from plugserve.core.metrics.exposition import OPENMETRICS_TYPE, PROMETHEUS_TYPE, Exposition, Sample, Shown
from plugserve.core.metrics.metric_handles import Counter
from plugserve.core.metrics.metric_store import MetricStore
from plugserve.core.metrics.store_reader import Reading, StoreReader
from plugserve.core.wire.heartbeats import Vitals
from plugserve.server.operations import engine_metrics, vllm_metrics
from plugserve.server.operations.engine_metrics import PLUGIN_COUNTERS, PLUGIN_LABELS, EngineSnapshot
from plugserve.server.operations.objectives import Objectives
from plugserve.server.operations.request_metrics import COUNTERS, HISTOGRAMS, ModelMetrics, RequestFamilies

FRONTEND: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "http_requests": ("HTTP requests answered.", ("path", "status")),
    "http_connections_refused": (
        "Connections refused, dropped for new ones, or not accepted for want of file descriptors.",
        ("reason",),
    ),
}
"""Counters of server workers: help and labels."""
BUILD_INFO: Final = "build_info"
BUILD_INFO_HELP: Final = "1; the label is plugserve's version."


class PluginCalls:
    """Plugins' time and failures; the CallListener of a worker's PluginGuard."""

    def __init__(self, store: MetricStore) -> None:
        families = {
            name: Counter(store, f"plugserve_{name}", help, PLUGIN_LABELS)
            for name, (help, _) in PLUGIN_COUNTERS.items()
        }
        self._seconds = families["plugin_seconds"]
        self._errors = families["plugin_errors"]
        self._quarantines = families["plugin_quarantines"]

    def spent(self, plugin: str, hook: str, seconds: float) -> None:
        self._seconds.labels(plugin, hook).inc(max(0.0, seconds))

    def failed(self, plugin: str, hook: str) -> None:
        self._errors.labels(plugin, hook).inc()

    def set_aside(self, plugin: str, hook: str) -> None:
        self._quarantines.labels(plugin, hook).inc()


class Metrics:
    """Every metric of this process, and the text of all. folder holds the stores of this server's processes; without
    one, only this process's is shown."""

    def __init__(
        self,
        store: MetricStore | None = None,
        folder: Path | None = None,
        objectives: Objectives | None = None,
        version: str = "",
    ) -> None:
        self._store = store if store is not None else MetricStore()
        self._reader = StoreReader(self._store, folder)
        self._exposition = Exposition()
        self._requests = RequestFamilies(self._store, objectives if objectives is not None else Objectives())
        frontend = {
            name: Counter(self._store, f"plugserve_{name}", help, labels) for name, (help, labels) in FRONTEND.items()
        }
        self.http_requests = frontend["http_requests"]
        self.connections_refused = frontend["http_connections_refused"]
        self.plugins = PluginCalls(self._store)
        self._version = version

    def of_model(self, model: str) -> ModelMetrics:
        return ModelMetrics(self._requests, model)

    def connection_refused(self, reason: str) -> None:
        """Count a connection that was refused or dropped for new ones."""
        self.connections_refused.labels(reason).inc()

    def render(
        self,
        engines: Iterable[EngineSnapshot],
        workers: Mapping[str, Vitals] = MappingProxyType({}),
        *,
        is_open: bool = False,
    ) -> bytes:
        """The text of all processes' metrics, the given snapshots, and the workers' heartbeats; is_open for
        OpenMetrics, with exemplars."""
        families = self.families(list(engines), workers, with_exemplars=is_open)
        text = self._exposition.write(families, is_open=is_open)
        return _with_prometheus_client(text, is_open)

    def families(
        self, engines: list[EngineSnapshot], workers: Mapping[str, Vitals], *, with_exemplars: bool = False
    ) -> Iterator[Shown]:
        """What render writes."""
        readings = {one.family.name: one for one in self._reader.read(with_exemplars=with_exemplars)}
        build = [Sample((("version", self._version),), 1.0)]
        yield Shown(f"plugserve_{BUILD_INFO}", "gauge", BUILD_INFO_HELP, build)
        yield from engine_metrics.engine_families(engines)
        yield from engine_metrics.worker_families(workers)
        hooks = {name: readings.pop(f"plugserve_{name}", None) for name in PLUGIN_COUNTERS}
        counts = {name: _numbers(reading) for name, reading in hooks.items() if reading is not None}
        yield from engine_metrics.plugin_families(counts, engines)
        requests = {
            name: _shown(readings.pop(f"plugserve_{name}"))
            for name in (*COUNTERS, *HISTOGRAMS)
            if f"plugserve_{name}" in readings
        }
        yield from requests.values()
        yield from map(_shown, readings.values())
        yield from vllm_metrics.engine_families(engines)
        if requests:
            yield from vllm_metrics.request_families(requests)


def content_type(is_open: bool) -> str:
    return OPENMETRICS_TYPE if is_open else PROMETHEUS_TYPE


def _numbers(reading: Reading) -> Mapping[tuple[str, ...], float]:
    return {values: float(cells[0]) for values, cells in reading.series.items()}


def _shown(reading: Reading) -> Shown:
    family = reading.family
    samples = [
        Sample(
            tuple(zip(family.labels, values, strict=True)),
            cells if family.buckets else float(cells[0]),
            reading.exemplars.get(values, MappingProxyType({})),
        )
        for values, cells in reading.series.items()
    ]
    return Shown(family.name, family.kind, family.help, samples, family.buckets)


def _with_prometheus_client(text: bytes, is_open: bool) -> bytes:
    """text, and the metrics of plugins that use prometheus_client themselves, whose files its folder holds."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is None or not any(name.endswith(".db") for name in os.listdir(folder)):
        return text
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    if is_open:
        theirs: bytes = generate_openmetrics(registry)  # type: ignore[no-untyped-call]
        return text.removesuffix(b"# EOF\n") + theirs
    return text + generate_latest(registry)
