"""The cost of tracing in CPU time: a server that traces beside one that doesn't, in alternating pairs.

    python benchmarks/tracing.py [--model PATH] [--pairs 10] [--requests 200] [--tokens 32] [--plain] [--json out.json]

Both servers are started once; the collector is a third process (tests/otlp_receiver.py). A run sends chat requests,
eight at a time, and takes the CPU time of all of its server's processes from before the first request until the last
span has been sent. Without --model the runner takes no time, so that a request costs what the server and the engine's
loop cost; with it (the embedded model: --model default) the model computes. Prints CPU time a request with and without
tracing, and the difference of the pairs with its 95 % interval (bootstrap of the median). --alone measures the tracer
without a server: what it takes to collect, write and send a chat request's five spans.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

import httpx
import psutil

LIMIT_PERCENT = 2.0
NUM_STREAMS = 8
WARM_UP = 50
EXPORT_MS = 500

INSTANT = '''
from collections import deque

from plugserve import RunnerInfo, StepResult, hookimpl


class InstantRunner:
    """A model runner that always samples the same token, at once."""

    owns_attention = True

    def __init__(self):
        self._results = deque()

    def load(self):
        return RunnerInfo(vocab_size=49152, max_model_len=8192, max_num_batched_tokens=2048, num_blocks=1 << 14,
                          block_size=16, kv_cache_bytes=0, weight_bytes=0, dtype="float32", device="cpu")

    def launch(self, step):
        self._results.append(StepResult(step.step_id, [[28120] if samples else [] for samples in step.samples]))

    def provide_masks(self, step_id, masks): ...

    def collect(self):
        return self._results.popleft()

    def close(self): ...


@hookimpl
def plugserve_model_runners():
    return {"instant": lambda context: InstantRunner()}
'''


class Server:
    """A server's processes, while the context is open."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        command = [sys.executable, "-m", "plugserve", "--host", "127.0.0.1", "--port", "0", *arguments]
        self._folder = tempfile.TemporaryDirectory()
        self._log = Path(self._folder.name, "log")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, stderr=log, env=inherited | environment)
        self.url = ""

    def __enter__(self) -> Server:
        for _ in range(1200):
            found = re.search(r"ready on (http://\S+)", self._log.read_text())
            if found:
                self.url = found[1]
                return self
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(self._log.read_text())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(60)
        self._folder.cleanup()

    def cpu_s(self) -> float:
        """CPU time of all of its processes so far."""
        top = psutil.Process(self._process.pid)
        return sum(sum(process.cpu_times()[:2]) for process in (top, *top.children(recursive=True)))


async def send(url: str, count: int, num_tokens: int, *, is_stream: bool) -> None:
    """count chat requests, NUM_STREAMS at a time."""
    body = {
        "messages": [{"role": "user", "content": "Tell me something about the sea, and why it is salty."}],
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": is_stream,
    }
    left = iter(range(count))

    async def client(http: httpx.AsyncClient) -> None:
        for _ in left:
            answer = await http.post(url + "/v1/chat/completions", json=body)
            answer.raise_for_status()

    async with httpx.AsyncClient(timeout=600) as http:
        await asyncio.gather(*(client(http) for _ in range(NUM_STREAMS)))


def run(server: Server, count: int, num_tokens: int, *, is_stream: bool) -> float:
    """CPU ms a request."""
    before_s = server.cpu_s()
    asyncio.run(send(server.url, count, num_tokens, is_stream=is_stream))
    time.sleep(3 * EXPORT_MS / 1e3)
    return (server.cpu_s() - before_s) * 1e3 / count


def interval(values: list[float]) -> tuple[float, float]:
    """95 % of the bootstrap's medians."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(2000))
    return medians[50], medians[-51]


def report(off: list[float], on: list[float], arguments: argparse.Namespace) -> dict[str, object]:
    differences = [with_it - without for without, with_it in zip(off, on, strict=True)]
    base, cost, (low, high) = statistics.median(off), statistics.median(differences), interval(differences)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; {len(off)} pairs of runs of")
    kind = "plain" if arguments.plain else "streamed"
    print(f"{arguments.requests} chat requests of {arguments.tokens} tokens, {kind}")
    print(f"without tracing  {base:8.3f} ms of CPU a request")
    print(f"with tracing     {statistics.median(on):8.3f}")
    print(f"difference       {cost:8.3f} ({low:.3f} to {high:.3f})")
    percents = [100 * value / base for value in (cost, low, high)]
    print("in percent       {:8.2f} ({:.2f} to {:.2f}), limit {:g}".format(*percents, LIMIT_PERCENT))
    return {"off_ms": off, "on_ms": on, "difference_ms": [cost, low, high], "percent": 100 * cost / base}


def alone(url: str, count: int) -> float:
    """CPU us of this process a request, its thread that exports included."""
    from plugserve.core.settings.settings import Settings
    from plugserve.core.wire.sequence_times import SequenceTimes
    from plugserve.server.operations.tracing.make_tracer import make_tracer
    from plugserve.server.operations.tracing.tracer import SequenceSpan

    os.environ["OTEL_BSP_MAX_QUEUE_SIZE"] = str(10 * count)
    tracer = make_tracer(Settings(otlp_traces_endpoint=url), os.environ)
    texts = {f"http.attribute_{n}": "a text of some length" for n in range(8)} | {"http.response.status_code": 200}
    numbers = {f"gen_ai.number_{n}": n for n in range(8)}
    headers = {"user-agent": "benchmark"}

    def request(number: int) -> None:
        trace = tracer.begin(headers, "/v1/chat/completions")
        token = trace.enter()
        span = trace.generation("chat", "model")
        span.set({**numbers, "gen_ai.request.id": f"id-{number}", "gen_ai.output.type": "text"})
        now_s = time.perf_counter()
        times = SequenceTimes(now_s - 3, now_s - 2, now_s - 1, now_s)
        seconds = {f"gen_ai.latency.{n}": n * now_s for n in range(8)}
        result = {"gen_ai.response.id": f"id-{number}", "gen_ai.response.finish_reasons": ["length"]}
        span.finish({**numbers, **seconds, **result}, [SequenceSpan(20, 0, 32, times, now_s - 3)])
        trace.leave(token)
        trace.end_http("POST /v1/chat/completions", {**texts, "plugserve.request.id": f"id-{number}"})
        trace.finish()

    for number in range(WARM_UP):
        request(number)
    before_s = time.process_time()
    for number in range(count):
        request(number)
    tracer.shutdown()
    return (time.process_time() - before_s) * 1e6 / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--plain", action="store_true", help="not streamed")
    parser.add_argument("--alone", action="store_true", help="no server: the tracer's own CPU time")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plugin = Path(folder, "instant.py")
        plugin.write_text(INSTANT)
        common = ["--disable-log-stats"]
        if given.model is None:
            common += ["--plugin", str(plugin), "--runner", "instant"]
        elif given.model != "default":
            common += ["--model", given.model]
        root = Path(__file__).parents[1]
        collector = subprocess.Popen(
            [sys.executable, "-m", "tests.otlp_receiver", "--http", "0"], cwd=root, stdout=subprocess.PIPE, text=True
        )
        assert collector.stdout is not None
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.stdout.readline().strip()}
        traced["OTEL_BSP_SCHEDULE_DELAY"] = str(EXPORT_MS)
        try:
            if given.alone:
                print(f"{alone(traced['OTEL_EXPORTER_OTLP_ENDPOINT'], 2000):.1f} us of CPU a request")
                return
            with Server(common, {}) as plain, Server(common, traced) as tracing:
                off, on = measure(plain, tracing, given)
        finally:
            collector.terminate()
    result = report(off, on, given)
    if given.json is not None:
        given.json.write_text(json.dumps(result))


def measure(plain: Server, tracing: Server, given: argparse.Namespace) -> tuple[list[float], list[float]]:
    """CPU ms a request of each run without and with tracing; the order changes from pair to pair."""
    results: dict[Server, list[float]] = {plain: [], tracing: []}
    for server in results:
        run(server, min(WARM_UP, given.requests), given.tokens, is_stream=not given.plain)
    for pair in range(given.pairs):
        for server in (plain, tracing) if pair % 2 == 0 else (tracing, plain):
            results[server].append(run(server, given.requests, given.tokens, is_stream=not given.plain))
    return results[plain], results[tracing]


if __name__ == "__main__":
    main()
