"""The cost of the flight recorder in an engine's step: with and without it, on a runner that takes no time.

    python -m benchmarks.flight_recorder [--rows 1,64,512] [--pairs 60] [--out out.json]

One engine runs with its recorder and with the null object in its place, in turns of short runs and changing order, so
that other load on the machine affects both; times are the process's CPU time. Prints the median cost of a step, what
the recorder's own calls take of it, and the difference of the pairs with its 95 % interval (bootstrap). A tick comes
before each step, as in the engine's loop.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from array import array
from pathlib import Path
from typing import Any

from benchmarks.plugin_overhead import InstantRunner, interval
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.engine.engine import Engine
from plugserve.core.engine.engine_state import EngineLimits
from plugserve.core.engine.flight_recorder import FlightRecorder
from plugserve.core.engine.switched_off import NoFlightRecorder
from plugserve.core.flight.flight_file import FlightFile, FlightSizes
from plugserve.plugins.schedulers.fcfs import make_fcfs
from plugserve.testing.contexts import scheduler_context

SIZES = FlightSizes(4096, 16384)


def make_engine(num_rows: int, path: Path) -> Engine:
    """With num_rows decoding sequences, recorded into path."""
    runner = InstantRunner()
    recorder = FlightRecorder(FlightFile.create(path, SIZES, b"{}"), 2048)
    engine = Engine(
        runner=runner,
        info=runner.load(),
        scheduler=make_fcfs(scheduler_context()),
        scheduler_name="fcfs",
        limits=EngineLimits(max(64, num_rows), num_rows),
        flight=recorder,
    )
    for number in range(num_rows):
        engine.admit((b"w", number), array("i", [1, 2, 3]), SamplingParams(max_tokens=1 << 19, seed=0))
    for _ in range(50):
        engine.step()
    engine.take_outputs()
    return engine


def us_per_step(engine: Engine, num_steps: int) -> float:
    started_ns = time.process_time_ns()
    for _ in range(num_steps):
        engine.flight.tick()
        engine.step()
        engine.take_outputs()
    return (time.process_time_ns() - started_ns) / num_steps / 1000


def alone_us(engine: Engine, recorder: NoFlightRecorder) -> float:
    """The best of 30 runs of nothing but the recorder's calls of one step."""
    engine.step()
    batch, best_us = engine._launched[0], float("inf")
    for _ in range(30):
        started_ns = time.process_time_ns()
        for _ in range(300):
            recorder.tick()
            recorder.step(batch, 0.001)
        best_us = min(best_us, (time.process_time_ns() - started_ns) / 300 / 1000)
    return best_us


def measure(num_rows: int, num_pairs: int, num_steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        engine = make_engine(num_rows, Path(folder) / "flight-0")
        recorder, nothing = engine.flight, NoFlightRecorder()
        gc.collect()
        gc.freeze()
        gc.disable()
        off, on = [], []
        for pair in range(num_pairs):
            for flight, times in ((nothing, off), (recorder, on)) if pair % 2 else ((recorder, on), (nothing, off)):
                engine.flight = flight
                times.append(us_per_step(engine, num_steps))
        gc.enable()
        calls_us = alone_us(engine, recorder)
    differences = [b - a for a, b in zip(off, on, strict=True)]
    low, high = interval(differences)
    return {
        "rows": num_rows,
        "off_us": statistics.median(off),
        "on_us": statistics.median(on),
        "difference_us": statistics.median(differences),
        "interval_us": [low, high],
        "calls_us": calls_us,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,64,512")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--steps", type=int, default=0, help="of a run; 0: as many as take about 50 ms")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = []
    print(f"{'rows':>6}{'off us':>10}{'on us':>10}{'calls us':>10}{'difference us':>16}   95 % interval")
    for num_rows in map(int, options.rows.split(",")):
        result = measure(num_rows, options.pairs, options.steps or max(50, 4000 // (num_rows + 8)))
        low, high = result["interval_us"]
        print(
            f"{num_rows:>6}{result['off_us']:>10.1f}{result['on_us']:>10.1f}{result['calls_us']:>10.2f}{result['difference_us']:>16.2f}"
            f"   {low:.2f} .. {high:.2f}",
            flush=True,
        )
        results.append(result)
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
