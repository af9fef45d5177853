"""What /metrics shows of engines and workers: a table over their snapshots at a scrape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from plugserve.core.contracts.engine_facts import STEP_TOKEN_BOUNDS, EngineInfo, EngineStats
from plugserve.core.metrics.exposition import Sample, Shown
from plugserve.core.metrics.metric_store import with_last
from plugserve.core.wire.heartbeats import Vitals
from plugserve.core.wire.messages import ModelCounts


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """One engine's facts and counters at a scrape. state is its client's: "up", "unloaded" and others. number is its
    place among the model's engines, None for an only one; counts and num_restarts are the model's."""

    model: str
    is_up: bool
    num_restarts: int
    stats: EngineStats
    vitals: Vitals | None = None
    counts: ModelCounts = field(default_factory=ModelCounts)
    info: EngineInfo | None = None
    state: str = "up"
    number: int | None = None

    @property
    def is_unloaded(self) -> bool:
        return self.state == "unloaded"

    @property
    def is_unhealthy(self) -> bool:
        return self.vitals is not None and self.vitals.is_unhealthy

    @property
    def heartbeat_age_s(self) -> float:
        return self.vitals.age_s if self.vitals is not None else 0.0

    @property
    def num_hangs(self) -> int:
        return self.vitals.num_hangs if self.vitals is not None else 0

    @property
    def labels(self) -> tuple[tuple[str, str], ...]:
        own = () if self.number is None else (("engine", str(self.number)),)
        return (*self.model_labels, *own)

    @property
    def model_labels(self) -> tuple[tuple[str, str], ...]:
        """For what all engines of the model have in common."""
        return (("model_name", self.model),)


Read = Callable[[EngineSnapshot], float]

GAUGES: Final[Mapping[str, tuple[str, Read]]] = {
    "engine_up": ("1 while the engine answers.", lambda engine: engine.is_up),
    "engine_unhealthy": ("1 while the engine hangs.", lambda engine: engine.is_unhealthy),
    "engine_heartbeat_age_seconds": ("Time since the engine's loop last moved.", lambda engine: engine.heartbeat_age_s),
    "model_unloaded": ("1 while the model isn't loaded until a request needs it.", lambda engine: engine.is_unloaded),
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
COUNTERS: Final[Mapping[str, tuple[str, Read]]] = {
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
LABELLED: Final[Mapping[str, tuple[str, str, str, Mapping[str, Callable[[EngineStats], float]]]]] = {
    "prompt_tokens_cached_by_source": (
        "counter",
        "Prompt tokens found in the prefix cache, by where they lay.",
        "source",
        {
            "device": lambda stats: stats.num_prefix_hit_tokens - stats.num_prefix_hit_tokens_host,
            "host": lambda stats: stats.num_prefix_hit_tokens_host,
        },
    ),
    "preemptions_by_kind": (
        "counter",
        "Sequences preempted: their KV blocks kept in host memory (swap), or computed again (recompute).",
        "kind",
        {
            "swap": lambda stats: stats.num_swap_preemptions,
            "recompute": lambda stats: stats.num_preemptions - stats.num_swap_preemptions,
        },
    ),
    "num_requests_waiting_by_reason": (
        "gauge",
        "Sequences that wait: for room (capacity), or for a LoRA adapter (deferred).",
        "reason",
        {
            "capacity": lambda stats: stats.num_requests_waiting - stats.num_requests_waiting_for_adapter,
            "deferred": lambda stats: stats.num_requests_waiting_for_adapter,
        },
    ),
}
"""(kind, help, label, how each of its values is read)."""
ITERATION_TOKENS: Final = "iteration_tokens"
ITERATION_TOKENS_HELP: Final = "Prompt tokens and generated tokens of a step."
PER_POSITION: Final = "spec_decode_num_accepted_tokens_per_pos"
PER_POSITION_HELP: Final = "Draft tokens accepted, by position from 0."
OF_MODELS: Final = frozenset(
    (
        "model_unloaded",
        "model_memory_bytes",
        "model_last_load_seconds",
        "model_loads",
        "model_load_seconds",
        "engine_restarts",
    )
)
"""Of GAUGES and COUNTERS those of a model, shown once however many engines it has."""
UNLOADS: Final = "model_unloads"
UNLOADS_HELP: Final = "Times the model was unloaded: idle for too long, for the memory of another one, or by a call."
STEP_BUCKETS: Final = with_last(STEP_TOKEN_BOUNDS)
PLUGIN_LABELS: Final = ("plugin", "hook")
PLUGIN_COUNTERS: Final[Mapping[str, tuple[str, Callable[[EngineStats], Mapping[str, float]]]]] = {
    "plugin_seconds": (
        "Time spent in a plugin's hooks (waiting included) and in its strategy's calls.",
        lambda stats: stats.plugin_seconds,
    ),
    "plugin_errors": ("Exceptions of a plugin in hooks and strategies.", lambda stats: stats.plugin_errors),
    "plugin_quarantines": (
        "Times that a plugin was left out of a request or switched off because it failed.",
        lambda stats: stats.plugin_quarantines,
    ),
}
WORKERS: Final[Mapping[str, tuple[str, str, Callable[[Vitals], float]]]] = {
    "worker_heartbeat_age_seconds": (
        "gauge",
        "Time since a worker's event loop last turned.",
        lambda vitals: vitals.age_s,
    ),
    "worker_unhealthy": ("gauge", "1 while a worker hangs.", lambda vitals: vitals.is_unhealthy),
    "worker_hangs": ("counter", "Times a worker was found hung.", lambda vitals: vitals.num_hangs),
}


def engine_families(engines: Sequence[EngineSnapshot]) -> Iterator[Shown]:
    """The families of plugserve_ names that engines give."""
    for name, (help, read) in GAUGES.items():
        yield Shown(f"plugserve_{name}", "gauge", help, _samples(name, read, engines))
    for name, (help, read) in COUNTERS.items():
        yield Shown(f"plugserve_{name}", "counter", help, _samples(name, read, engines))
    for name in LABELLED:
        yield labelled(name, f"plugserve_{name}", engines, lambda engine: engine.labels)
    yield iteration_tokens(f"plugserve_{ITERATION_TOKENS}", engines, lambda engine: engine.labels)
    yield Shown(f"plugserve_{PER_POSITION}", "counter", PER_POSITION_HELP, _per_position(engines))
    unloads = [
        Sample((*engine.model_labels, ("reason", reason)), float(count))
        for engine in _one_a_model(engines)
        for reason, count in engine.counts.unloads.items()
    ]
    yield Shown(f"plugserve_{UNLOADS}", "counter", UNLOADS_HELP, unloads)


def _samples(name: str, read: Read, engines: Sequence[EngineSnapshot]) -> list[Sample]:
    if name in OF_MODELS:
        return [Sample(one.model_labels, float(read(one))) for one in _one_a_model(engines)]
    return [Sample(one.labels, float(read(one))) for one in engines]


def _one_a_model(engines: Sequence[EngineSnapshot]) -> Sequence[EngineSnapshot]:
    return [one for one in engines if not one.number]


def _per_position(engines: Sequence[EngineSnapshot]) -> list[Sample]:
    return accepted_per_position(engines, lambda engine: engine.labels)


Labels = Callable[[EngineSnapshot], tuple[tuple[str, str], ...]]


def labelled(name: str, shown_name: str, engines: Sequence[EngineSnapshot], labels: Labels) -> Shown:
    """A family of LABELLED under another name, with the given labels before its own."""
    kind, help, label, values = LABELLED[name]
    samples = [
        Sample((*labels(engine), (label, value)), float(read(engine.stats)))
        for engine in engines
        for value, read in values.items()
    ]
    return Shown(shown_name, kind, help, samples)


def iteration_tokens(name: str, engines: Sequence[EngineSnapshot], labels: Labels) -> Shown:
    """The histogram of steps' sizes."""
    samples = [
        Sample(labels(engine), np.array([*engine.stats.num_steps_by_tokens, engine.stats.num_step_tokens], dtype=float))
        for engine in engines
        if engine.stats.num_steps_by_tokens
    ]
    return Shown(name, "histogram", ITERATION_TOKENS_HELP, samples, STEP_BUCKETS)


def accepted_per_position(engines: Sequence[EngineSnapshot], labels: Labels) -> list[Sample]:
    return [
        Sample((*labels(engine), ("position", str(position))), float(count))
        for engine in engines
        for position, count in enumerate(engine.stats.num_accepted_per_position)
    ]


def worker_families(workers: Mapping[str, Vitals]) -> Iterator[Shown]:
    """The heartbeats of server workers, by index."""
    for name, (kind, help, read) in WORKERS.items():
        samples = [Sample((("worker", index),), float(read(vitals))) for index, vitals in workers.items()]
        yield Shown(f"plugserve_{name}", kind, help, samples)


def plugin_families(
    hooks: Mapping[str, Mapping[tuple[str, ...], float]], engines: Sequence[EngineSnapshot]
) -> list[Shown]:
    """Plugins' time and failures: hooks are the workers' counts, by family and (plugin, hook); strategies' are added,
    summed over engines."""
    families = []
    for name, (help, read) in PLUGIN_COUNTERS.items():
        totals: defaultdict[tuple[str, ...], float] = defaultdict(float, hooks.get(name, {}))
        for engine in engines:
            for key, value in read(engine.stats).items():
                plugin, _, call = key.rpartition(" ")
                totals[plugin, call] += value
        samples = [Sample(tuple(zip(PLUGIN_LABELS, key, strict=True)), value) for key, value in totals.items()]
        families.append(Shown(f"plugserve_{name}", "counter", help, samples))
    return families


def _kv_usage(stats: EngineStats) -> float:
    if not stats.num_blocks:
        return 0.0
    return (stats.num_blocks - stats.num_free_blocks) / stats.num_blocks
