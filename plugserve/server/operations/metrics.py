"""The metrics that Prometheus reads.

Request metrics live in prometheus_client's multiprocess files when PROMETHEUS_MULTIPROC_DIR is set (before this module
is imported), so any worker's /metrics shows all workers. Engine metrics are made from a snapshot at each scrape.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.wire.heartbeats import Vitals
from plugserve.core.wire.messages import ModelCounts

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_TTFT_S: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
_TOKEN_S: Final = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_REQUEST_S: Final = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
_PLUGIN_LABELS: Final = ("plugin", "hook")
_SECONDS: Final = "Time spent in a plugin's hooks (waiting included) and in its strategy's calls."
_ERRORS: Final = "Exceptions of a plugin in hooks and strategies."
_QUARANTINES: Final = "Times that a plugin was left out of a request or switched off because it failed."
_TOKENS: Final = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))


class ModelMetrics:
    """The request metrics of one model, its label bound once."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.prompt_tokens = metrics.prompt_tokens.labels(model)
        self.generation_tokens = metrics.generation_tokens.labels(model)
        self.time_to_first_token = metrics.time_to_first_token.labels(model)
        self.inter_token_latency = metrics.inter_token_latency.labels(model)
        self._metrics = metrics
        self._model = model

    def finished(self, reason: str, *, total_s: float, queue_s: float, decode_s_per_token: float | None) -> None:
        """A request has been answered or aborted; reason is its finish_reason, "abort" or "error"."""
        self._metrics.request_success.labels(self._model, reason).inc()
        self._metrics.e2e_request_latency.labels(self._model).observe(total_s)
        self._metrics.request_queue_time.labels(self._model).observe(queue_s)
        if decode_s_per_token is not None:
            self._metrics.request_time_per_output_token.labels(self._model).observe(decode_s_per_token)

    def sizes(self, num_prompt_tokens: int, num_generated_tokens: int) -> None:
        """A finished request's lengths."""
        self._metrics.request_prompt_tokens.labels(self._model).observe(num_prompt_tokens)
        self._metrics.request_generation_tokens.labels(self._model).observe(num_generated_tokens)


class PluginMetrics:
    """Plugins' time and failures; the CallListener of a worker's PluginGuard."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Counter("plugserve_plugin_seconds", _SECONDS, _PLUGIN_LABELS, registry=registry)
        self._errors = Counter("plugserve_plugin_errors", _ERRORS, _PLUGIN_LABELS, registry=registry)
        self._quarantines = Counter("plugserve_plugin_quarantines", _QUARANTINES, _PLUGIN_LABELS, registry=registry)

    def spent(self, plugin: str, hook: str, seconds: float) -> None:
        self._seconds.labels(plugin, hook).inc(max(0.0, seconds))

    def failed(self, plugin: str, hook: str) -> None:
        self._errors.labels(plugin, hook).inc()

    def set_aside(self, plugin: str, hook: str) -> None:
        self._quarantines.labels(plugin, hook).inc()


class Metrics:
    """Every request metric of this process. Made once a process in multiprocess mode."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of admitted requests.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated for clients.")
        self.request_success = self._counter("request_success", "Finished requests.", "finished_reason")
        self.http_requests = Counter(
            "plugserve_http_requests", "HTTP requests answered.", ("path", "status"), registry=self._registry
        )
        self.connections_refused = Counter(
            "plugserve_http_connections_refused",
            "Connections refused, dropped for new ones, or not accepted for want of file descriptors.",
            ("reason",),
            registry=self._registry,
        )
        self.time_to_first_token = self._histogram("time_to_first_token_seconds", "Time to first token.", _TTFT_S)
        self.inter_token_latency = self._histogram("inter_token_latency_seconds", "Time between tokens.", _TOKEN_S)
        self.request_time_per_output_token = self._histogram(
            "request_time_per_output_token_seconds", "A request's mean time per token after the first.", _TOKEN_S
        )
        self.e2e_request_latency = self._histogram("e2e_request_latency_seconds", "Whole request.", _REQUEST_S)
        self.request_queue_time = self._histogram("request_queue_time_seconds", "Time in the queue.", _REQUEST_S)
        self.request_prompt_tokens = self._histogram("request_prompt_tokens", "Prompt tokens of a request.", _TOKENS)
        self.request_generation_tokens = self._histogram(
            "request_generation_tokens", "Generated tokens of a request.", _TOKENS
        )

        self.plugins = PluginMetrics(self._registry)

    def of_model(self, model: str) -> ModelMetrics:
        return ModelMetrics(self, model)

    def render(self, engines: Iterable[EngineSnapshot], workers: Mapping[str, Vitals] = MappingProxyType({})) -> bytes:
        """The Prometheus text of all workers' request metrics, the given snapshots, and the workers' heartbeats."""
        registry = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        all_of_it = CollectorRegistry()
        all_of_it.register(_SnapshotCollector(list(engines), list(registry.collect()), workers))
        return generate_latest(all_of_it)

    def connection_refused(self, reason: str) -> None:
        """Count a connection that was refused or dropped for new ones."""
        self.connections_refused.labels(reason).inc()

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"plugserve_{name}", help, ("model_name", *labels), registry=self._registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"plugserve_{name}", help, ("model_name",), registry=self._registry, buckets=buckets)


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """One engine's facts and counters at a scrape."""

    model: str
    is_up: bool
    num_restarts: int
    stats: EngineStats
    vitals: Vitals | None = None
    counts: ModelCounts = field(default_factory=ModelCounts)

    @property
    def is_unhealthy(self) -> bool:
        return self.vitals is not None and self.vitals.is_unhealthy

    @property
    def heartbeat_age_s(self) -> float:
        return self.vitals.age_s if self.vitals is not None else 0.0

    @property
    def num_hangs(self) -> int:
        return self.vitals.num_hangs if self.vitals is not None else 0


_GAUGES: Final[Mapping[str, tuple[str, Callable[[EngineSnapshot], float]]]] = {
    "engine_up": ("1 while the engine answers.", lambda engine: engine.is_up),
    "engine_unhealthy": ("1 while the engine hangs.", lambda engine: engine.is_unhealthy),
    "engine_heartbeat_age_seconds": ("Time since the engine's loop last moved.", lambda engine: engine.heartbeat_age_s),
    "model_memory_bytes": ("Memory that the model takes.", lambda engine: engine.counts.size_bytes),
    "model_last_load_seconds": ("Time that its last load took.", lambda engine: engine.counts.last_load_s),
    "num_requests_running": ("Sequences in the running set.", lambda engine: engine.stats.num_requests_running),
    "num_requests_waiting": ("Sequences that wait.", lambda engine: engine.stats.num_requests_waiting),
    "kv_cache_usage_perc": ("Share of KV blocks in use, 0 to 1.", lambda engine: _kv_usage(engine.stats)),
    "kv_blocks": ("KV blocks in all.", lambda engine: engine.stats.num_blocks),
    "kv_blocks_free": ("KV blocks that are free.", lambda engine: engine.stats.num_free_blocks),
    "kv_host_blocks": ("KV blocks that host memory may hold.", lambda engine: engine.stats.num_host_blocks),
    "kv_host_blocks_used": ("KV blocks in host memory.", lambda engine: engine.stats.num_used_host_blocks),
    "engine_resident_memory_bytes": (
        "Resident memory of the engine's process.",
        lambda engine: engine.stats.memory.resident_bytes,
    ),
    "engine_resident_memory_peak_bytes": (
        "The most that was resident.",
        lambda engine: engine.stats.memory.peak_resident_bytes,
    ),
    "engine_device_memory_reserved_bytes": (
        "Device memory that the engine's allocator holds, 0 on a CPU.",
        lambda engine: engine.stats.memory.device_reserved_bytes,
    ),
    "engine_device_memory_reserved_peak_bytes": (
        "The most that it held.",
        lambda engine: engine.stats.memory.device_peak_reserved_bytes,
    ),
    "lora_adapters": ("LoRA adapters that the engine holds.", lambda engine: engine.stats.num_adapters),
    "lora_adapters_in_memory": (
        "LoRA adapters whose weights are in host memory.",
        lambda engine: engine.stats.num_adapters_in_memory,
    ),
    "lora_slots_in_use": ("LoRA adapters that have a slot.", lambda engine: engine.stats.num_adapter_slots_in_use),
    "num_requests_waiting_for_lora": (
        "Sequences that wait for a LoRA slot.",
        lambda engine: engine.stats.num_requests_waiting_for_adapter,
    ),
}
_COUNTERS: Final[Mapping[str, tuple[str, Callable[[EngineSnapshot], float]]]] = {
    "num_preemptions": ("Sequences preempted.", lambda engine: engine.stats.num_preemptions),
    "engine_steps": ("Steps run.", lambda engine: engine.stats.num_steps),
    "engine_prompt_tokens": ("Prompt tokens admitted by the engine.", lambda engine: engine.stats.num_prompt_tokens),
    "engine_generated_tokens": ("Tokens sampled by the engine.", lambda engine: engine.stats.num_generated_tokens),
    "engine_plan_errors": ("Plans that broke their budget.", lambda engine: engine.stats.num_plan_errors),
    "kv_integrity_checks": ("Checks of the block pool.", lambda engine: engine.stats.num_integrity_checks),
    "kv_integrity_errors": ("Failed checks of the block pool.", lambda engine: engine.stats.num_integrity_errors),
    "prefix_cache_queries": ("Prompt tokens looked up.", lambda engine: engine.stats.num_prefix_queried_tokens),
    "prefix_cache_hits": ("Prompt tokens found.", lambda engine: engine.stats.num_prefix_hit_tokens),
    "kv_blocks_swapped_out": (
        "KV blocks copied to the host with preempted sequences.",
        lambda engine: engine.stats.num_swapped_out_blocks,
    ),
    "kv_blocks_swapped_in": (
        "KV blocks copied back with sequences that had been preempted.",
        lambda engine: engine.stats.num_swapped_in_blocks,
    ),
    "kv_offload_store_bytes": ("Bytes of KV copied to the host.", lambda engine: engine.stats.num_host_bytes_out),
    "kv_offload_load_bytes": ("Bytes of KV copied back.", lambda engine: engine.stats.num_host_bytes_in),
    "spec_decode_num_drafts": ("Verifications of drafts: a row of a step.", lambda engine: engine.stats.num_drafts),
    "spec_decode_num_draft_tokens": ("Draft tokens verified.", lambda engine: engine.stats.num_draft_tokens),
    "spec_decode_num_accepted_tokens": (
        "Draft tokens accepted.",
        lambda engine: engine.stats.num_accepted_draft_tokens,
    ),
    "spec_decode_errors": ("Steps in which the draft proposer failed.", lambda engine: engine.stats.num_draft_errors),
    "lora_drops": (
        "Times a LoRA adapter was dropped from host memory for another.",
        lambda engine: engine.stats.num_adapters_dropped,
    ),
    "lora_swaps": ("Times a LoRA adapter was given a slot.", lambda engine: engine.stats.num_adapter_swaps),
    "model_loads": ("Times the model was loaded.", lambda engine: engine.counts.num_loads),
    "model_load_seconds": ("Time that loading it took in all.", lambda engine: engine.counts.load_s),
    "engine_hangs": ("Times the engine was found hung.", lambda engine: engine.num_hangs),
    "engine_restarts": ("Times the engine came back.", lambda engine: engine.num_restarts),
}
_VLLM_NAMES: Final = (  # dashboards made for vLLM look for these
    "prefix_cache_queries",
    "prefix_cache_hits",
    "num_preemptions",
    "kv_offload_store_bytes",
    "kv_offload_load_bytes",
)
_LABELLED_COUNTERS: Final[Mapping[str, tuple[str, str, Mapping[str, Callable[[EngineStats], float]]]]] = {
    "prompt_tokens_cached_by_source": (
        "Prompt tokens found in the prefix cache, by where they lay.",
        "source",
        {
            "device": lambda stats: stats.num_prefix_hit_tokens - stats.num_prefix_hit_tokens_host,
            "host": lambda stats: stats.num_prefix_hit_tokens_host,
        },
    ),
    "preemptions_by_kind": (
        "Sequences preempted: their KV blocks kept in host memory (swap), or computed again (recompute).",
        "kind",
        {
            "swap": lambda stats: stats.num_swap_preemptions,
            "recompute": lambda stats: stats.num_preemptions - stats.num_swap_preemptions,
        },
    ),
}
"""(help, label, how each of its values is read)."""


def _nothing(stats: EngineStats) -> Mapping[str, float]:
    return {}


_STRATEGIES: Final[Mapping[str, Callable[[EngineStats], Mapping[str, float]]]] = {
    "plugserve_plugin_seconds": lambda stats: stats.plugin_seconds,
    "plugserve_plugin_errors": lambda stats: stats.plugin_errors,
    "plugserve_plugin_quarantines": lambda stats: stats.plugin_quarantines,
}


class _SnapshotCollector(Collector):
    """The workers' metrics, with what strategies add to those of plugins, and the engines' own."""

    def __init__(
        self, engines: list[EngineSnapshot], workers: list[Metric], worker_vitals: Mapping[str, Vitals]
    ) -> None:
        self._engines = engines
        self._workers = workers
        self._worker_vitals = worker_vitals

    def collect(self) -> Iterator[Metric]:
        for name, (help, read) in _GAUGES.items():
            yield self._filled(GaugeMetricFamily(f"plugserve_{name}", help, labels=["model_name"]), read)
        for name, (help, read) in _COUNTERS.items():
            yield self._filled(CounterMetricFamily(f"plugserve_{name}", help, labels=["model_name"]), read)
            if name in _VLLM_NAMES:
                yield self._filled(CounterMetricFamily(f"vllm:{name}", help, labels=["model_name"]), read)
        yield from self._worker_heartbeats()
        yield from self._labelled()
        yield self._accepted_per_position()
        yield self._unloads()
        for family in self._workers:
            self._add_strategies(family)
            yield family

    def _worker_heartbeats(self) -> Iterator[Metric]:
        age = GaugeMetricFamily(
            "plugserve_worker_heartbeat_age_seconds", "Time since a worker's event loop last turned.", labels=["worker"]
        )
        unhealthy = GaugeMetricFamily("plugserve_worker_unhealthy", "1 while a worker hangs.", labels=["worker"])
        hangs = CounterMetricFamily("plugserve_worker_hangs", "Times a worker was found hung.", labels=["worker"])
        for index, vitals in self._worker_vitals.items():
            age.add_metric([index], vitals.age_s)
            unhealthy.add_metric([index], float(vitals.is_unhealthy))
            hangs.add_metric([index], vitals.num_hangs)
        yield from (age, unhealthy, hangs)

    def _labelled(self) -> Iterator[Metric]:
        for name, (help, label, values) in _LABELLED_COUNTERS.items():
            family = CounterMetricFamily(f"plugserve_{name}", help, labels=["model_name", label])
            for engine in self._engines:
                for value, read in values.items():
                    family.add_metric([engine.model, value], read(engine.stats))
            yield family

    def _accepted_per_position(self) -> Metric:
        family = CounterMetricFamily(
            "plugserve_spec_decode_num_accepted_tokens_per_pos",
            "Draft tokens accepted, by position from 0.",
            labels=["model_name", "position"],
        )
        for engine in self._engines:
            for position, count in enumerate(engine.stats.num_accepted_per_position):
                family.add_metric([engine.model, str(position)], count)
        return family

    def _unloads(self) -> Metric:
        family = CounterMetricFamily(
            "plugserve_model_unloads",
            "Times the model was unloaded: idle for too long, for the memory of another one, or by a call.",
            labels=["model_name", "reason"],
        )
        for engine in self._engines:
            for reason, count in engine.counts.unloads.items():
                family.add_metric([engine.model, reason], count)
        return family

    def _add_strategies(self, family: Metric) -> None:
        """Plugins' time and failures in the engines, summed over engines."""
        totals: defaultdict[tuple[str, str], float] = defaultdict(float)
        for engine in self._engines:
            for key, value in _STRATEGIES.get(family.name, _nothing)(engine.stats).items():
                plugin, _, call = key.rpartition(" ")
                totals[plugin, call] += value
        for (plugin, call), value in totals.items():
            family.add_sample(f"{family.name}_total", {"plugin": plugin, "hook": call}, value)

    def _filled(
        self, family: GaugeMetricFamily | CounterMetricFamily, read: Callable[[EngineSnapshot], float]
    ) -> Metric:
        for engine in self._engines:
            family.add_metric([engine.model], float(read(engine)))
        return family


def _kv_usage(stats: EngineStats) -> float:
    if not stats.num_blocks:
        return 0.0
    return (stats.num_blocks - stats.num_free_blocks) / stats.num_blocks
