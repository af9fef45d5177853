"""The same figures under vLLM's names and labels, for dashboards and alerts that are made for it.

The names are those of vLLM 0.33 (vllm/v1/metrics/loggers.py). Figures of things that plugserve doesn't have (a cache of
images, KV from other servers) are 0. The label engine is the engine's place among its model's; requests are counted by
model, under "0".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from plugserve.core.metrics.exposition import Sample, Shown
from plugserve.server.operations import engine_metrics as engines_of
from plugserve.server.operations.engine_metrics import EngineSnapshot

PREFIX: Final = "vllm:"
ENGINE: Final = ("engine", "0")

GAUGES: Final = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
COUNTERS: Final = (
    "num_preemptions",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "kv_offload_store_bytes",
    "kv_offload_load_bytes",
    "spec_decode_num_drafts",
    "spec_decode_num_draft_tokens",
    "spec_decode_num_accepted_tokens",
)
"""Of engine_metrics' tables."""
NOTHING: Final[Mapping[str, str]] = {
    "external_prefix_cache_queries": "0: no KV comes from other servers.",
    "external_prefix_cache_hits": "0: no KV comes from other servers.",
    "mm_cache_queries": "0: there is no cache of images.",
    "mm_cache_hits": "0: there is no cache of images.",
}
REQUESTS: Final = ("prompt_tokens", "generation_tokens", "request_success")
"""Counters of request_metrics; all its histograms are shown, too."""
OTHERS: Final[Mapping[str, tuple[str, str, tuple[str, ...]]]] = {
    "prompt_tokens_cached": ("counter", "Prompt tokens found in the prefix cache.", ()),
    "prompt_tokens_by_source": ("counter", "Prompt tokens: computed, or found in the cache.", ("source",)),
    "prompt_tokens_cached_by_source": ("counter", "Those found, by where they lay.", ("source",)),
    "num_requests_waiting_by_reason": ("gauge", "Sequences that wait for room, or for a LoRA adapter.", ("reason",)),
    "engine_sleep_state": (
        "gauge",
        "awake is 1 for a loaded model, discard_all for others.",
        ("sleep_state",),
    ),
    "cache_config_info": ("gauge", "1; the labels are the KV cache's facts.", ()),
    "lora_requests_info": (
        "gauge",
        "The time of the scrape; the labels are the adapters with sequences that run and that wait.",
        ("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
    ),
    "admission_rejections": ("counter", "Requests refused because the queue was full.", ("reason",)),
    "iteration_tokens_total": ("histogram", engines_of.ITERATION_TOKENS_HELP, ()),
    engines_of.PER_POSITION: ("counter", engines_of.PER_POSITION_HELP, ("position",)),
}
_REASONS: Final = ("max_num_queued_reqs", "max_num_queued_tokens")
_NO_SOURCES: Final = ("disk", "p2p", "external_unspecified")


def engine_families(engines: Sequence[EngineSnapshot]) -> Iterator[Shown]:
    """What engines give, under vLLM's names."""
    for name in GAUGES:
        help, read = engines_of.GAUGES[name]
        yield _shown(name, "gauge", help, engines, read)
    for name in COUNTERS:
        help, read = engines_of.COUNTERS[name]
        yield _shown(name, "counter", help, engines, read)
    for name, help in NOTHING.items():
        yield _shown(name, "counter", help, engines, lambda engine: 0.0)
    yield _other("prompt_tokens_cached", [Sample(_labels(e), float(e.stats.num_prefix_hit_tokens)) for e in engines])
    yield _other("prompt_tokens_by_source", [one for engine in engines for one in _by_source(engine)])
    yield _cached_by_source(engines)
    name = "num_requests_waiting_by_reason"
    yield engines_of.labelled(name, f"{PREFIX}{name}", engines, _labels)
    yield _other("engine_sleep_state", [one for engine in engines for one in _sleep_states(engine)])
    yield _other("cache_config_info", [Sample(_cache_facts(engine), 1.0) for engine in engines if engine.info])
    yield _other("lora_requests_info", [_adapters(engine) for engine in engines if engine.stats.num_adapter_slots])
    yield engines_of.iteration_tokens(f"{PREFIX}iteration_tokens_total", engines, _labels)
    yield _other(engines_of.PER_POSITION, engines_of.accepted_per_position(engines, _labels))


def request_families(families: Mapping[str, Shown]) -> Iterator[Shown]:
    """families (request_metrics' names without a prefix, as shown) under vLLM's names."""
    for name, family in families.items():
        if family.kind == "histogram" or name in REQUESTS:
            samples = [replace(one, labels=(one.labels[0], ENGINE, *one.labels[1:])) for one in family.samples]
            yield replace(family, name=f"{PREFIX}{name}", samples=samples)
    refused = families["requests_refused"].samples
    counts = [
        Sample((*one.labels, ("reason", reason)), one.value if reason == _REASONS[0] else 0.0)
        for one in refused
        for reason in _REASONS
    ]
    yield _other("admission_rejections", counts)


def _labels(engine: EngineSnapshot) -> tuple[tuple[str, str], ...]:
    return (*engine.model_labels, ("engine", str(engine.number or 0)))


def _shown(
    name: str, kind: str, help: str, engines: Sequence[EngineSnapshot], read: Callable[[EngineSnapshot], float]
) -> Shown:
    return Shown(f"{PREFIX}{name}", kind, help, [Sample(_labels(engine), float(read(engine))) for engine in engines])


def _other(name: str, samples: Sequence[Sample]) -> Shown:
    kind, help, _ = OTHERS[name]
    return Shown(f"{PREFIX}{name}", kind, help, samples)


def _by_source(engine: EngineSnapshot) -> Iterator[Sample]:
    stats = engine.stats
    counts = {
        "local_compute": stats.num_prompt_tokens - stats.num_prefix_hit_tokens,
        "local_cache_hit": stats.num_prefix_hit_tokens,
        "external_kv_transfer": 0,
    }
    for source, number in counts.items():
        yield Sample((*_labels(engine), ("source", source)), float(number))


def _cached_by_source(engines: Sequence[EngineSnapshot]) -> Shown:
    name = "prompt_tokens_cached_by_source"
    family = engines_of.labelled(name, f"{PREFIX}{name}", engines, _labels)
    nothing = [Sample((*_labels(engine), ("source", source)), 0.0) for engine in engines for source in _NO_SOURCES]
    return replace(family, samples=[*family.samples, *nothing])


def _sleep_states(engine: EngineSnapshot) -> Iterator[Sample]:
    states = {"awake": not engine.is_unloaded, "weights_offloaded": False, "discard_all": engine.is_unloaded}
    for state, is_so in states.items():
        yield Sample((*_labels(engine), ("sleep_state", state)), float(is_so))


def _cache_facts(engine: EngineSnapshot) -> tuple[tuple[str, str], ...]:
    info = engine.info
    assert info is not None
    facts = {
        "block_size": info.block_size,
        "num_gpu_blocks": info.num_blocks,
        "num_cpu_blocks": info.num_host_slots,
        "cache_dtype": info.dtype,
        "enable_prefix_caching": bool(info.prefix_salt),
    }
    return (*_labels(engine), *((name, str(value)) for name, value in facts.items()))


def _adapters(engine: EngineSnapshot) -> Sample:
    stats = engine.stats
    labels = (
        *engine.labels,
        ("max_lora", str(stats.num_adapter_slots)),
        ("running_lora_adapters", ",".join(stats.adapters_running)),
        ("waiting_lora_adapters", ",".join(stats.adapters_waiting)),
    )
    return Sample(labels, time.time())
