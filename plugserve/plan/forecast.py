"""Forecasts of every split of a number of GPUs for one workload, and the choice among them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from plugserve.plan.model_shape import ModelShape
from plugserve.plan.split import Cluster, Split, SplitCosts

GPU_CHUNK = 8192
"""--max-num-batched-tokens on a GPU, where it isn't set."""


@dataclass(frozen=True, slots=True)
class Workload:
    """rows requests at once over all GPUs, each with prompt and answer tokens. chunk is --max-num-batched-tokens,
    utilisation --gpu-memory-utilization, max_num_seqs each engine's --max-num-seqs."""

    rows: int
    prompt: int
    answer: int
    chunk: int = GPU_CHUNK
    utilisation: float = 0.9
    max_num_seqs: int = 256


@dataclass(frozen=True, slots=True)
class Forecast:
    """weight_gib and kv_tokens are of the fullest GPU and of one engine. problem says why a split can't be used; its
    times are 0 then. rows_at_once is how many requests one engine decodes together."""

    split: Split
    weight_gib: float
    kv_tokens: int
    problem: str = ""
    rows_at_once: int = 0
    first_token_ms: float = 0.0
    one_row_ms: float = 0.0
    step_ms: float = 0.0
    prompt_rate: float = 0.0
    output_rate: float = 0.0
    total_rate: float = 0.0


def splits(num_gpus: int) -> Iterator[Split]:
    """All of TP x PP x DP = num_gpus."""
    for tp in range(1, num_gpus + 1):
        for pp in range(1, num_gpus // tp + 1):
            if num_gpus % (tp * pp) == 0:
                yield Split(tp, pp, num_gpus // (tp * pp))


def forecast(shape: ModelShape, split: Split, cluster: Cluster, work: Workload) -> Forecast:
    """What split gives for work. The arithmetic is in docs/parallel.md."""
    costs = SplitCosts(shape, split, cluster)
    kv_tokens = costs.num_kv_tokens(work.utilisation)
    weight_gib = costs.weight_bytes / 2**30
    length = work.prompt + work.answer
    problem = _problem(shape, split, kv_tokens, length)
    if problem:
        return Forecast(split, weight_gib, kv_tokens, problem)
    asked = math.ceil(work.rows / split.dp)
    rows = max(1, min(asked, work.max_num_seqs * split.pp, kv_tokens // length))
    rounds = asked / rows
    context = work.prompt + work.answer / 2
    step_s = costs.decode_s(rows, context)
    prompt_rate = costs.prompt_rate(work.prompt, min(work.chunk, rows * work.prompt))
    seconds = rounds * (rows * work.prompt / prompt_rate + (work.answer - 1) * step_s)
    return Forecast(
        split,
        weight_gib,
        kv_tokens,
        rows_at_once=rows,
        first_token_ms=1e3 * costs.first_token_s(work.prompt, work.chunk),
        one_row_ms=1e3 * costs.decode_s(1, context),
        step_ms=1e3 * step_s,
        prompt_rate=split.dp * prompt_rate,
        output_rate=work.rows * work.answer / seconds,
        total_rate=work.rows * length / seconds,
    )


def _problem(shape: ModelShape, split: Split, kv_tokens: int, length: int) -> str:
    if not shape.divides(split.tp):
        return f"TP {split.tp} does not divide its heads or MLP"
    if split.pp > shape.num_layers:
        return f"{split.pp} stages for {shape.num_layers} layers"
    if not kv_tokens:
        return "its weights don't fit"
    if kv_tokens < length:
        return f"no room for one request of {length} tokens"
    return ""


def choose(forecasts: list[Forecast], wants_latency: bool) -> Forecast | None:
    """The most output tokens a second, or the shortest step; None where nothing fits. Within 3 %, the one with fewer
    GPUs in an engine: fewer parts that can fail together."""
    usable = [one for one in forecasts if not one.problem]
    if not usable:
        return None
    if wants_latency:
        best = min(one.step_ms for one in usable)
        close = [one for one in usable if one.step_ms <= 1.03 * best]
    else:
        most = max(one.output_rate for one in usable)
        close = [one for one in usable if one.output_rate >= 0.97 * most]
    return min(close, key=lambda one: (one.split.tp * one.split.pp, one.split.pp))
