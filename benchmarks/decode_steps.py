"""Milliseconds of a decode step with a given number of rows at a given context length, and the rate of their prompts.

    python benchmarks/decode_steps.py 7B:64:8192 7B:8:30000         rows and prompt tokens of a shape, random weights
    python benchmarks/decode_steps.py 7B:1:128 7B:64:128 --setting tensor_parallel_size 2
    python benchmarks/decode_steps.py 135M:512:256 --profile        and device time by kernel
    python benchmarks/decode_steps.py tiny:4:64                     a test run of some seconds

A step counts from the moment when every row has its first token, and until the first row ends: so all rows run, and
each is a little longer than its prompt. The figure is the median; p90 is beside it. Prompts are computed in chunks of
--max-num-batched-tokens beside the rows that decode already.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import tempfile
import time
from array import array
from pathlib import Path
from typing import Any

from offline import SHAPES, TINY_SHAPE, say

NUM_STEPS = 60
PROFILED = (10, 20)  # steps


def main() -> None:
    options = read_options()
    print("shape  rows  context  ms/step     p90  prompt tok/s")
    for job in options.jobs:
        shape, rows, length = job.split(":")
        engine, runner, info = load(shape, int(rows), int(length), dict(options.setting))
        measure(engine, info, int(rows), min(int(length), 256), 8, False)  # warm-up
        rate, steps = measure(engine, info, int(rows), int(length), num_tokens(int(rows), int(length)), options.profile)
        p90_s = sorted(steps)[int(0.9 * len(steps))]
        median_s = statistics.median(steps)
        print(
            f"{shape:>5}  {rows:>4}  {length:>7}  {1e3 * median_s:7.3f}  {1e3 * p90_s:6.3f}  {rate:12,.0f}", flush=True
        )
        runner.close()
        del engine, runner
        gc.collect()


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="+", metavar="SHAPE:ROWS:TOKENS", help=f"shapes: {', '.join(SHAPES)}, tiny")
    parser.add_argument("--setting", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="any other")
    parser.add_argument("--profile", action="store_true", help="print device time by kernel, of ten steps")
    return parser.parse_args()


def num_tokens(rows: int, length: int) -> int:
    """So many that the first row still runs NUM_STEPS steps after the last one's prompt."""
    return NUM_STEPS + min(rows, max(1, rows * length // 256))


def load(shape: str, rows: int, length: int, settings: dict[str, Any]) -> tuple[Any, Any, Any]:
    """(engine, runner, info) of random weights of a shape."""
    from plugserve.core.engine.build import EngineBuilder
    from plugserve.core.model_files.model_source import resolve
    from plugserve.core.plugin_system.plugin_host import PluginHost
    from plugserve.core.settings.settings import Settings

    config = dict({**SHAPES, "tiny": TINY_SHAPE}[shape])
    most = length + num_tokens(rows, length)
    config["max_position_embeddings"] = max(config["max_position_embeddings"], most)
    folder = Path(tempfile.mkdtemp())
    (folder / "config.json").write_text(json.dumps(config))
    given = {"model": [str(folder)], "load_format": "dummy", "max_num_seqs": rows, "max_model_len": most, **settings}
    validated = Settings.model_validate(given)
    host = PluginHost.load(validated.selection())
    return EngineBuilder(validated, host, resolve(str(folder), load_format="dummy")).build()


def measure(
    engine: Any, info: Any, rows: int, length: int, output_len: int, is_profiled: bool
) -> tuple[float, list[float]]:
    """Prompt tokens a second until every row has its first token, and the seconds of each step afterwards."""
    from plugserve.core.contracts.sampling import SamplingParams

    rng = random.Random(0)
    for id in range(rows):
        prompt = array("i", (rng.randrange(info.vocab_size) for _ in range(length)))
        params = SamplingParams(max_tokens=output_len, seed=id, temperature=0.0, ignore_eos=True)
        engine.admit((b"benchmark", id), prompt, params)
    counts: dict[int, int] = {}
    steps: list[float] = []
    profile: Any = None
    began_s = last_s = time.perf_counter()
    prompts_s = 0.0
    while engine.has_work:
        engine.step()
        for _, message in engine.take_outputs():
            if message.errors:
                raise SystemExit(f"a request failed: {next(iter(message.errors.values()))}")
            for id, count in zip(message.ids, message.num_tokens, strict=True):
                counts[id] = counts.get(id, 0) + count
        now_s = time.perf_counter()
        if len(counts) == rows and max(counts.values()) < output_len - 1:
            if prompts_s:
                steps.append(now_s - last_s)
            prompts_s = prompts_s or now_s - began_s
            if is_profiled and len(steps) in PROFILED:
                profile = begin_or_print(profile)
        last_s = now_s
    return rows * length / prompts_s if prompts_s else 0.0, steps


def begin_or_print(profile: Any) -> Any:
    """Start profiling; or stop it, and print device time by kernel."""
    import torch

    torch.cuda.synchronize()
    if profile is None:
        profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        profile.__enter__()
        return profile
    profile.__exit__(None, None, None)
    num_steps = PROFILED[1] - PROFILED[0]
    events = [one for one in profile.key_averages() if one.self_device_time_total]
    for one in sorted(events, key=lambda one: -one.self_device_time_total)[:15]:
        total_us = one.self_device_time_total
        say(f"  {total_us / num_steps / 1e3:8.3f} ms a step {one.count / num_steps:6.1f} x {one.key[:80]}")
    return None


if __name__ == "__main__":
    main()
