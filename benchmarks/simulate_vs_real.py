"""Compares `plugserve simulate` with a real server: fcfs, fair and the example package sjf on one trace.

    pip install ./examples/plugserve-sjf
    python benchmarks/simulate_vs_real.py [--rounds 2] [--svg docs/images/simulate_vs_real.svg] [-- plugserve arguments]

Serves SmolLM2 under each scheduler with the same requests at the same times: a burst of long jobs of one user, short
requests of two others after it. Each run records a trace. The runs alternate, because other load changes the machine's
speed; for the same reason throughput is also corrected for the machine's speed in each run: the time of its steps
divided by the time that the fit of all runs predicts for them. Then every scheduler is simulated on the requests
of the first fcfs run, against the step times of all runs, and both tables are printed, with their rankings.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import httpx

from plugserve.core.contracts.factories import SchedulerContext
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.trace_file import Trace, read_trace
from plugserve.simulate.fair_share import FairShares
from plugserve.simulate.figures import Figures, Targets, figures_of, measured, simulated_figures, table
from plugserve.simulate.machine import Fit, build_machine
from plugserve.simulate.simulation import Machine, Served, Simulation
from plugserve.simulate.svg_chart import BarChart, LineChart, as_svg

SCHEDULERS = ("fcfs", "fair", "sjf")
SERVER = ("--max-num-seqs", "6", "--max-num-batched-tokens", "128", "--max-model-len", "1024")
WARM_UP_TOKENS = 2
TIE = 0.01  # figures as close as this have no order
SJF = ("--sjf.aging-tokens", "0", "--sjf.max-wait-s", "600")


@dataclass(frozen=True)
class Job:
    """One request of the workload."""

    at_s: float
    user: str
    prompt: list[int]
    output_tokens: int


def workload(seed: int, num_long: int, num_short: int, span_s: float) -> list[Job]:
    """Long jobs of "batch" within half a second, then short ones of "ada" and "bob" over span_s."""
    rng = random.Random(seed)

    def job(at_s: float, user: str, prompt: tuple[int, int], output: tuple[int, int]) -> Job:
        tokens = [rng.randrange(1000, 40000) for _ in range(rng.randint(*prompt))]
        return Job(at_s, user, tokens, rng.randint(*output))

    jobs = [job(rng.random() * 0.5, "batch", (100, 300), (160, 220)) for _ in range(num_long)]
    jobs += [job(0.5 + rng.random() * span_s, rng.choice(["ada", "bob"]), (16, 48), (16, 48)) for _ in range(num_short)]
    return sorted(jobs, key=lambda one: one.at_s)


# ---------------------------------------------------------------- live


def serve_and_record(scheduler: str, jobs: Sequence[Job], trace: Path, arguments: Sequence[str]) -> None:
    """Serve jobs under scheduler; the server writes trace."""
    command = [sys.executable, "-m", "plugserve", "--host", "127.0.0.1", "--port", "0", "--disable-log-requests"]
    command += ["--scheduler", scheduler, "--record-trace", str(trace), *SERVER, *arguments]
    command += SJF if scheduler == "sjf" else ()
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        asyncio.run(send_all(ready_url(server), jobs))
    finally:
        server.terminate()
        server.wait(30)


def read_recorded(trace: Path) -> Trace:
    """What the server recorded, without the warm-up."""
    recorded = read_trace(str(trace))
    recorded.requests = [one for one in recorded.requests if one.output_tokens > WARM_UP_TOKENS]
    return recorded


def ready_url(server: subprocess.Popen[str]) -> str:
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"ready on (\S+)", line):
            return found[1]
    raise SystemExit("the server did not start; run plugserve by itself to see why")


async def send_all(url: str, jobs: Sequence[Job]) -> None:
    """Send every job at its time, after a warm-up."""
    async with httpx.AsyncClient(timeout=1800, limits=httpx.Limits(max_connections=512)) as http:
        for length in (100, 20):
            await send(http, url, Job(0.0, "warm-up", list(range(1000, 1000 + length)), WARM_UP_TOKENS), 0.0)
        started_s = time.perf_counter()
        await asyncio.gather(*(send(http, url, job, started_s) for job in jobs))


async def send(http: httpx.AsyncClient, url: str, job: Job, started_s: float) -> None:
    await asyncio.sleep(max(0.0, started_s + job.at_s - time.perf_counter()))
    body = {"prompt": job.prompt, "max_tokens": job.output_tokens, "ignore_eos": True, "temperature": 0}
    response = await http.post(url + "/v1/completions", json={**body, "user": job.user})
    response.raise_for_status()


# ---------------------------------------------------------------- simulated


def simulate(scheduler: str, trace: Trace, machine: Machine) -> tuple[Figures, list[Served]]:
    """The simulated run of scheduler on trace."""
    options = {"sjf": {"aging_tokens": 0, "max_wait_s": 600}} if scheduler == "sjf" else {}
    settings = Settings(scheduler=scheduler, plugins=options)
    host = PluginHost.load(settings.selection())
    factory, plugin = host.factory("schedulers", scheduler)
    made = factory(
        SchedulerContext(
            options=host.options(plugin, settings),
            config=settings.view(),
            device="simulated",
            dtype="float32",
            block_size=machine.block_size,
            max_model_len=machine.max_model_len,
        )
    )
    outcome = Simulation(machine, made, scheduler).run(trace.requests)
    return simulated_figures(scheduler, outcome, FairShares(trace.requests, machine), Targets()), outcome.served


def ranking(values: dict[str, float], *, is_descending: bool) -> str:
    """Names from the best to the worst, with = between those closer than TIE."""
    names = sorted(values, key=lambda name: values[name], reverse=is_descending)
    text = names[0]
    for one, next_one in pairwise(names):
        text += (" = " if is_tie(values[one], values[next_one]) else " > ") + next_one
    return text


def is_tie(one: float, other: float) -> bool:
    return abs(one - other) <= TIE * max(abs(one), abs(other))


def agree(simulated: dict[str, float], live: dict[str, float]) -> bool:
    """True if every two schedulers that the simulation ranks were measured in that order."""
    return all(
        is_tie(simulated[one], simulated[other]) or (simulated[one] < simulated[other]) == (live[one] < live[other])
        for one, other in combinations(simulated, 2)
    )


def combined(name: str, rounds: Sequence[Trace], machine: Machine) -> tuple[Figures, list[Served]]:
    """One row of several live runs: latencies of all requests, and the median throughput."""
    each = [figures_of(name, measured(one.requests), FairShares(one.requests, machine), Targets()) for one in rounds]
    served = [one for run in rounds for one in measured(run.requests)]
    rate = statistics.median(one.output_tokens_per_s for one in each)
    good_rate = statistics.median(one.good_requests_per_s for one in each)
    everything = figures_of(name, served, FairShares([], machine), Targets())
    fairness = statistics.median(one.fairness for one in each)
    return replace(everything, output_tokens_per_s=rate, good_requests_per_s=good_rate, fairness=fairness), served


def slowness(trace: Trace, fit: Fit) -> float:
    """The time of a run's steps, divided by the mean time of such steps over all runs."""
    expected_s = sum(fit.step_time.predict_s(prompt + rows, rows, pairs) for prompt, rows, pairs, _ in trace.steps)
    return sum(ms for *_, ms in trace.steps) / 1e3 / expected_s


def corrected_rates(traces: dict[str, list[Trace]], fit: Fit, machine: Machine) -> dict[str, float]:
    """Output tokens per second, corrected to an equal machine speed in all runs; the median of each scheduler's."""
    rates: dict[str, float] = {}
    for name, runs in traces.items():
        each = [
            figures_of(name, measured(one.requests), FairShares(one.requests, machine), Targets()).output_tokens_per_s
            * slowness(one, fit)
            for one in runs
        ]
        rates[name] = statistics.median(each)
    return rates


def as_fields(figures: Figures) -> dict[str, Any]:
    return {name: getattr(figures, name) for name in Figures.__slots__}


def write_svg(path: Path, live: dict[str, list[Served]], simulated: dict[str, list[Served]], rows: Any) -> None:
    def ttft_ms(served: Sequence[Served]) -> list[float]:
        return sorted(1e3 * one.ttft_s for one in served if one.ttft_s is not None)

    live_rows, simulated_rows = rows
    charts = [
        LineChart("TTFT, measured", "ms", {name: ttft_ms(served) for name, served in live.items()}),
        LineChart("TTFT, simulated", "ms", {name: ttft_ms(served) for name, served in simulated.items()}),
        BarChart(
            "Median TTFT",
            "ms",
            list(SCHEDULERS),
            {
                "measured": [1e3 * (one.ttft_p50_s or 0) for one in live_rows],
                "simulated": [1e3 * (one.ttft_p50_s or 0) for one in simulated_rows],
            },
        ),
        BarChart(
            "Throughput",
            "output tokens a second",
            list(SCHEDULERS),
            {
                "measured": [one.output_tokens_per_s for one in live_rows],
                "simulated": [one.output_tokens_per_s for one in simulated_rows],
            },
        ),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_svg(charts), encoding="utf-8")


def read_options() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=9)
    parser.add_argument("--long", type=int, default=5, help="jobs of the user batch")
    parser.add_argument("--short", type=int, default=40, help="requests of the other users")
    parser.add_argument("--span", type=float, default=9.0, help="seconds over which the short ones arrive")
    parser.add_argument("--traces", type=Path, help="folder for the traces; kept")
    parser.add_argument("--reuse", action="store_true", help="serve nothing, read the traces of an earlier run")
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--json", type=Path)
    options, arguments = parser.parse_known_args()
    return options, [one for one in arguments if one != "--"]


def main() -> None:
    options, arguments = read_options()
    jobs = workload(options.seed, options.long, options.short, options.span)
    folder = options.traces or Path(tempfile.mkdtemp(prefix="simulate-vs-real-"))
    folder.mkdir(parents=True, exist_ok=True)
    traces: dict[str, list[Trace]] = {name: [] for name in SCHEDULERS}
    for number in range(options.rounds):
        for name in SCHEDULERS:
            path = folder / f"{name}-{number}.jsonl"
            if options.reuse:
                traces[name].append(read_recorded(path))
                continue
            path.unlink(missing_ok=True)
            serve_and_record(name, jobs, path, arguments)
            traces[name].append(read_recorded(path))
            print(f"round {number + 1}: {name} done", file=sys.stderr, flush=True)
    compare(options, traces)


def compare(options: argparse.Namespace, traces: dict[str, list[Trace]]) -> None:
    fit = Fit([step for runs in traces.values() for one in runs for step in one.steps])
    base = traces["fcfs"][0]
    machine = build_machine(base, Settings(), (), fit.step_time)
    live = {name: combined(name, runs, machine) for name, runs in traces.items()}
    simulated = {name: simulate(name, base, machine) for name in SCHEDULERS}
    live_rows, simulated_rows = ([one[0] for one in rows.values()] for rows in (live, simulated))
    print(f"step time: {fit.step_time} ({fit})")
    print(f"\nmeasured, {options.rounds} runs each\n{table(live_rows)}")
    print(f"\nsimulated\n{table(simulated_rows)}\n")
    corrected = corrected_rates(traces, fit, machine)
    print("measured tok/s, corrected for the machine's speed in each run: ", end="")
    print(", ".join(f"{name} {rate:.1f}" for name, rate in corrected.items()), end="\n\n")
    agreements = {}
    live_rates = {one.name: one.output_tokens_per_s for one in live_rows}
    for title, name, is_descending, given in (
        ("median TTFT", "ttft_p50_s", False, None),
        ("throughput", "output_tokens_per_s", True, live_rates),
        ("corrected throughput", "output_tokens_per_s", True, corrected),
        ("fairness", "fairness", True, None),
    ):
        ours = {one.name: getattr(one, name) for one in simulated_rows}
        theirs = given or {one.name: getattr(one, name) for one in live_rows}
        agreements[title] = agree(ours, theirs)
        orders = [ranking(values, is_descending=is_descending) for values in (theirs, ours)]
        verdict = "same" if agreements[title] else "DIFFERENT"
        print(f"{title}: measured {orders[0]}, simulated {orders[1]}: {verdict}")
    if options.svg:
        served = ({name: one[1] for name, one in rows.items()} for rows in (live, simulated))
        write_svg(options.svg, *served, (live_rows, simulated_rows))
    if options.json:
        report = {"same_ranking": agreements, "step_time": str(fit.step_time)}
        report |= {
            "measured": [as_fields(one) for one in live_rows],
            "simulated": [as_fields(one) for one in simulated_rows],
        }
        options.json.write_text(json.dumps(report, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
