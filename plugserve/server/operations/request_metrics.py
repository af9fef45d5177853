"""What a server worker counts of requests: one table of families, and their series for each model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from plugserve.core.metrics.metric_handles import Counter, Histogram
from plugserve.core.metrics.metric_store import MetricStore
from plugserve.server.operations.objectives import Objectives

TTFT_S: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
TOKEN_S: Final = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_S: Final = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
TOKENS: Final = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))
CHOICES: Final = (1.0, 2.0, 5.0, 10.0, 20.0)
PREEMPTIONS: Final = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)

HISTOGRAMS: Final[Mapping[str, tuple[str, tuple[float, ...]]]] = {
    "time_to_first_token_seconds": ("From the request's arrival to its first token.", TTFT_S),
    "inter_token_latency_seconds": ("Between two tokens of an answer.", TOKEN_S),
    "request_time_per_output_token_seconds": ("A request's mean time per token after the first.", TOKEN_S),
    "e2e_request_latency_seconds": ("From the request's arrival to its end.", REQUEST_S),
    "request_queue_time_seconds": ("Until the engine first computed a part of the request.", REQUEST_S),
    "request_prefill_time_seconds": ("From then to the first token.", REQUEST_S),
    "request_decode_time_seconds": ("From the first token to the last.", REQUEST_S),
    "request_inference_time_seconds": ("Prefill and decode together.", REQUEST_S),
    "request_prompt_tokens": ("Prompt tokens of a request.", TOKENS),
    "request_generation_tokens": ("Tokens generated for a request.", TOKENS),
    "request_max_num_generation_tokens": ("Tokens of the longest answer of a request.", TOKENS),
    "request_prefill_kv_computed_tokens": ("Prompt tokens of a request that the cache didn't have.", TOKENS),
    "request_params_n": ("Answers that a request asks for.", CHOICES),
    "request_params_max_tokens": ("Most tokens of an answer that a request asks for.", TOKENS),
    "request_num_preemptions": ("Times that a request lost its KV blocks to others.", PREEMPTIONS),
}
"""Of each model; the names and buckets are vLLM's."""

COUNTERS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "prompt_tokens": ("Prompt tokens of admitted requests.", ()),
    "generation_tokens": ("Tokens generated for clients.", ()),
    "request_success": ("Requests that ended, by why: stop, length, abort, error.", ("finished_reason",)),
    "requests_refused": ("Requests refused because the queue was full.", ()),
    "goodput_requests": ("Requests that ended by themselves within every objective of --goodput.", ()),
    "goodput_misses": ("Requests that ended by themselves and missed an objective.", ("objective",)),
}
"""Of each model: help, and labels after the model's."""

_EXEMPLARS: Final = "_seconds"


@dataclass(frozen=True, slots=True)
class RequestMeasures:
    """A request that reached the engine, at its end. reason is its finish_reason, "abort" or "error". Times are of its
    slowest sequence, and its own where the engine's aren't known; tokens are of all its sequences together.
    decode_s_per_token is None where no token follows a first one, first_token_s where there was none."""

    reason: str
    total_s: float
    queue_s: float
    prefill_s: float
    decode_s: float
    first_token_s: float | None
    decode_s_per_token: float | None
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    longest_answer: int
    num_choices: int
    max_tokens: int
    num_preemptions: int
    is_pooling: bool = False


class RequestFamilies:
    """The families of HISTOGRAMS and COUNTERS in a process's store, with goodput only where it is asked for."""

    def __init__(self, store: MetricStore, objectives: Objectives) -> None:
        self.objectives = objectives
        self.histograms = {
            name: Histogram(
                store, f"plugserve_{name}", help, buckets, ("model_name",), has_exemplars=name.endswith(_EXEMPLARS)
            )
            for name, (help, buckets) in HISTOGRAMS.items()
        }
        self.counters = {
            name: Counter(store, f"plugserve_{name}", help, ("model_name", *labels))
            for name, (help, labels) in COUNTERS.items()
            if objectives or not name.startswith("goodput")
        }


class ModelMetrics:
    """The request metrics of one model, its label bound once."""

    def __init__(self, families: RequestFamilies, model: str) -> None:
        self._families = families
        self._model = model
        self._observe = {name: family.labels(model).observe for name, family in families.histograms.items()}
        self._finished = families.counters["request_success"]
        for reason in ("stop", "length", "abort", "error"):
            self._finished.labels(model, reason)
        self._refused = families.counters["requests_refused"].labels(model)
        self._good = families.counters["goodput_requests"].labels(model) if families.objectives else None
        for objective in families.objectives.names:
            families.counters["goodput_misses"].labels(model, objective)
        self.admitted = families.counters["prompt_tokens"].labels(model).inc
        """Prompt tokens of a request that is sent to the engine."""
        self.generated = families.counters["generation_tokens"].labels(model).inc
        """Tokens that came from the engine."""
        self.first_token = self._observe["time_to_first_token_seconds"]
        """Seconds, and the id of the request's trace ("" for none)."""
        self.later_tokens = self._observe["inter_token_latency_seconds"]
        """Seconds between two tokens; times: so many tokens came so far apart, on average."""

    def refused(self) -> None:
        """The queue was full."""
        self._refused.inc()

    def finished(self, request: RequestMeasures, trace_id: str = "") -> None:
        """A request has been answered or aborted. trace_id is "" for one that isn't traced."""
        observe = self._observe
        self._finished.labels(self._model, request.reason).inc()
        observe["e2e_request_latency_seconds"](request.total_s, trace_id)
        observe["request_queue_time_seconds"](request.queue_s, trace_id)
        observe["request_prefill_time_seconds"](request.prefill_s, trace_id)
        observe["request_inference_time_seconds"](request.prefill_s + request.decode_s, trace_id)
        observe["request_prompt_tokens"](request.num_prompt_tokens)
        observe["request_prefill_kv_computed_tokens"](request.num_prompt_tokens - request.num_cached_tokens)
        observe["request_num_preemptions"](request.num_preemptions)
        observe["request_generation_tokens"](request.num_generated_tokens)
        observe["request_decode_time_seconds"](request.decode_s, trace_id)
        if not request.is_pooling:
            observe["request_params_n"](request.num_choices)
            observe["request_params_max_tokens"](request.max_tokens)
            observe["request_max_num_generation_tokens"](request.longest_answer)
        if request.decode_s_per_token is not None:
            observe["request_time_per_output_token_seconds"](request.decode_s_per_token, trace_id)
        if self._good is not None and request.reason not in ("abort", "error"):
            self._count_goodput(request, self._good.inc)

    def _count_goodput(self, request: RequestMeasures, count_good: Callable[[], None]) -> None:
        missed = self._families.objectives.missed(request)
        if not missed:
            count_good()
        for objective in missed:
            self._families.counters["goodput_misses"].labels(self._model, objective).inc()
