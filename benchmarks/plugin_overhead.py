"""The cost of 20 active but idle plugins in an engine step: paired runs, on a runner that takes no time.

    python benchmarks/plugin_overhead.py [--plugins 20] [--steps 10000] [--out out.json]

Two processes run the same engine on the same requests: one with plugserve's defaults, one with the idle plugins too,
each with all hooks and with strategies that are not selected. They alternate in short runs, in changing order, so that
other load on the machine affects both; times are the processes' CPU time. Prints the cost of a step with and without
them, the difference of the pairs' medians with its 95 % interval (bootstrap), and the difference of the best runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections import deque
from pathlib import Path
from typing import Any

RUN_STEPS = 250
NUM_SEQUENCES = 8
LIMIT_US = 2.0

IDLE = """
from plugserve import hookimpl
from pydantic import BaseModel, ConfigDict

class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    level: int = 3

@hookimpl
def plugserve_options(): return Options

@hookimpl
def plugserve_schedulers(): return {"idle-NUMBER": lambda context: None}

@hookimpl
def plugserve_attention_backends(): return {"idle-NUMBER": lambda context: None}

@hookimpl
def plugserve_tool_parsers(): return {"idle-NUMBER": lambda tools: None}

@hookimpl
def plugserve_configure(config): pass

@hookimpl
def plugserve_engine_started(engine): pass

@hookimpl
def plugserve_engine_stopping(engine): pass

@hookimpl
def plugserve_register_routes(app, engines): pass

@hookimpl
def plugserve_authorize(request): pass

@hookimpl
def plugserve_request_received(request): pass

@hookimpl
def plugserve_request_finished(request, usage, timings): pass

@hookimpl
def plugserve_error(request, error): pass
"""


class InstantRunner:
    """A model runner that always samples token 1."""

    owns_attention = True

    def __init__(self) -> None:
        self._results: deque[Any] = deque()

    def load(self) -> Any:
        from plugserve import RunnerInfo

        return RunnerInfo(
            vocab_size=100,
            max_model_len=1 << 20,
            max_num_batched_tokens=64,
            num_blocks=1 << 16,
            block_size=16,
            kv_cache_bytes=0,
            weight_bytes=0,
            dtype="float32",
            device="cpu",
        )

    def launch(self, step: Any) -> None:
        from plugserve import StepResult

        self._results.append(StepResult(step.step_id, [[1] if samples else [] for samples in step.samples]))

    def provide_masks(self, step_id: int, masks: Any) -> None: ...

    def collect(self) -> Any:
        return self._results.popleft()

    def close(self) -> None: ...


class Handle:
    """The EngineHandle that plugserve_engine_started gets."""

    def __init__(self, engine: Any, info: Any) -> None:
        self.model = "benchmark"
        self.info = info
        self.stats = engine.snapshot


def child(plugins: list[str]) -> None:
    """Build the engine with these plugins, then run the number of steps in each line of input; prints CPU ns."""
    from plugserve import SchedulerContext
    from plugserve.core.contracts.sampling import SamplingParams
    from plugserve.core.engine.engine import Engine
    from plugserve.core.engine.engine_state import EngineLimits
    from plugserve.core.plugin_system.plugin_host import PluginHost
    from plugserve.core.settings.selection import Selection
    from plugserve.core.settings.settings import Settings
    from plugserve.plugins.schedulers.fcfs import make_fcfs

    host = PluginHost.load(Selection(plugin=tuple(plugins)))
    settings = Settings(plugin=list(plugins))
    host.configure(settings)
    runner = InstantRunner()
    factory, name = host.factory("schedulers", "fcfs")
    assert factory is make_fcfs
    info = runner.load()
    engine = Engine(
        runner=runner,
        info=info,
        scheduler=factory(
            SchedulerContext(host.options(name, settings), settings.view(), "cpu", "float32", 16, max_model_len=2048)
        ),
        scheduler_name="fcfs",
        limits=EngineLimits(64, NUM_SEQUENCES),
    )
    host.observe("plugserve_engine_started", engine=Handle(engine, info))
    for number in range(NUM_SEQUENCES):
        engine.admit((b"w", number), array("i", [1, 2, 3]), SamplingParams(max_tokens=1 << 19, seed=0))
    gc.collect()
    gc.freeze()  # as the engine's process does
    print(len(host.active_names), flush=True)
    for line in sys.stdin:
        started_ns = time.process_time_ns()
        for _ in range(int(line)):
            engine.step()
            engine.take_outputs()
        print(time.process_time_ns() - started_ns, flush=True)


class Child:
    """One of the two processes."""

    def __init__(self, plugins: list[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--child", *plugins], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.num_plugins = int(self._read())

    def us_per_step(self, num_steps: int) -> float:
        assert self._process.stdin is not None
        print(num_steps, file=self._process.stdin, flush=True)
        return int(self._read()) / num_steps / 1000

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a process of the benchmark ended with {self._process.wait()}")
        return line

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def interval(values: list[float]) -> tuple[float, float]:
    """95 % interval of the median, by bootstrap."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(2000))
    return medians[50], medians[1949]


def measure(num_plugins: int, num_steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"idle_{number}.py" for number in range(num_plugins)]
        for number, file in enumerate(files):
            file.write_text(IDLE.replace("NUMBER", str(number)))
        children = {"without": Child([]), "with": Child([str(file) for file in files])}
        times: dict[str, list[float]] = {"without": [], "with": []}
        order = list(children)
        for name in order:
            children[name].us_per_step(2 * RUN_STEPS)
        for _ in range(max(1, num_steps // RUN_STEPS)):
            order.reverse()
            for name in order:
                times[name].append(children[name].us_per_step(RUN_STEPS))
        counts = {name: one.num_plugins for name, one in children.items()}
        for one in children.values():
            one.close()
    differences = [with_ - without for with_, without in zip(times["with"], times["without"], strict=True)]
    low, high = interval(differences)
    return {
        "num_idle_plugins": counts["with"] - counts["without"],
        "num_active_plugins": counts,
        "num_steps": len(differences) * RUN_STEPS,
        "us_per_step": {name: statistics.median(values) for name, values in times.items()},
        "difference_us": statistics.median(differences),
        "interval_us": [low, high],
        "difference_of_best_us": min(times["with"]) - min(times["without"]),
        "limit_us": LIMIT_US,
        "machine": {"python": platform.python_version(), "cpu": platform.processor() or platform.machine()},
    }


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--plugins", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10_000, help="of each process")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    report = measure(arguments.plugins, arguments.steps)
    low, high = report["interval_us"]
    rows = [
        ("idle plugins", str(report["num_idle_plugins"])),
        ("steps of each process", str(report["num_steps"])),
        ("CPU a step without", f"{report['us_per_step']['without']:.2f} us"),
        ("CPU a step with", f"{report['us_per_step']['with']:.2f} us"),
        ("difference, median of pairs", f"{report['difference_us']:+.2f} us (95 %: {low:+.2f} to {high:+.2f})"),
        ("difference of the best runs", f"{report['difference_of_best_us']:+.2f} us"),
        ("limit", f"{LIMIT_US:g} us"),
    ]
    for name, value in rows:
        print(f"{name:30} {value}")
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
