"""The cost of counting, and of a scrape: three models, four processes whose histograms are full.

    python benchmarks/metrics_cost.py [--models 3] [--processes 4] [--scrapes 50]

Prints this process's CPU time: of a scrape as text and as OpenMetrics with exemplars, and of counting one value, one
with its trace, and everything that is counted at a request's end.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.metrics.metric_store import MetricStore
from plugserve.server.operations.engine_metrics import EngineSnapshot
from plugserve.server.operations.metrics import Metrics
from plugserve.server.operations.request_metrics import ModelMetrics, RequestMeasures

TRACE = "0af7651916cd43dd8448eb211c80319c"
NUM_VALUES = 40  # of each histogram, one for each half power of two from 1 ms on
CALLS = 20_000


def measures(value: float) -> RequestMeasures:
    tokens = int(value * 1000)
    return RequestMeasures(
        reason="stop",
        total_s=value,
        queue_s=value,
        prefill_s=value,
        decode_s=value,
        first_token_s=value,
        decode_s_per_token=value,
        num_prompt_tokens=tokens,
        num_cached_tokens=0,
        num_generated_tokens=tokens,
        longest_answer=tokens,
        num_choices=1,
        max_tokens=tokens,
        num_preemptions=tokens,
    )


def fill(metrics: Metrics, num_models: int) -> ModelMetrics:
    """Count something in every bucket; returns the last model's metrics."""
    for name in range(num_models):
        model = metrics.of_model(f"org/model-{name}")
        for step in range(NUM_VALUES):
            value = 0.001 * 2 ** (step / 2)
            model.admitted(1)
            model.generated(1)
            model.first_token(value, TRACE)
            model.later_tokens(value)
            model.finished(measures(value), TRACE)
    return model


def cpu_ms(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return (time.process_time() - began) * 1e3


def repeat(work: Callable[[], object]) -> None:
    for _ in range(CALLS):
        work()


def report(num_models: int, num_scrapes: int, folder: Path) -> None:
    metrics = Metrics(MetricStore(folder / "worker-0"), folder)
    model = fill(metrics, num_models)
    engines = [EngineSnapshot(f"org/model-{name}", True, 0, EngineStats()) for name in range(num_models)]
    for label, is_open in (("text", False), ("OpenMetrics", True)):
        scrape = partial(metrics.render, engines, is_open=is_open)
        first = cpu_ms(scrape)
        others = [cpu_ms(scrape) for _ in range(num_scrapes)]
        num_lines = scrape().count(b"\n")
        print(f"{label:12} {statistics.median(others):6.2f} ms a scrape ({first:.2f} the first) of {num_lines} lines")
    request = measures(1.0)
    works: dict[str, Callable[[], object]] = {
        "one value": lambda: model.first_token(0.3),
        "with a trace": lambda: model.first_token(0.3, TRACE),
        "a request": lambda: model.finished(request),
    }
    for label, work in works.items():
        total_ms = cpu_ms(partial(repeat, work))
        print(f"{label:12} {total_ms / CALLS * 1e3:6.2f} us to count")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=3, metavar="N")
    parser.add_argument("--processes", type=int, default=4, metavar="N")
    parser.add_argument("--scrapes", type=int, default=50, metavar="N")
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)  # of a process that only counts
    args = parser.parse_args()
    if args.store is not None:
        fill(Metrics(MetricStore(args.store)), args.models)
        print("filled", flush=True)
        sys.stdin.read()
        return
    with tempfile.TemporaryDirectory() as folder:
        stores = [Path(folder) / f"worker-{index}" for index in range(1, args.processes)]
        command = [sys.executable, __file__, "--models", str(args.models), "--store"]
        others = [
            subprocess.Popen([*command, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for store in stores
        ]
        for other in others:
            assert other.stdout is not None
            other.stdout.readline()
        report(args.models, args.scrapes, Path(folder))
        for other in others:
            other.communicate()


if __name__ == "__main__":
    main()
