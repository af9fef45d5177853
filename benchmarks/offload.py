"""--cpu-offload-gb on a GPU: what it adds to a step, against the time that the link needs for the offloaded bytes.

    python benchmarks/offload.py                          a 1.5B shape, random weights, 0 and 1 GiB; under a minute
    python benchmarks/offload.py --shape 7B --gib 0 4 8

Measures the link by copies of page-locked memory alone. Then loads the model with each number of GiB offloaded, decodes
with 1 and with 8 requests and computes a prompt of 2,048 tokens. Prints one table, and exits with 1 if tokens differ or
if a step takes longer than without offloading by more than 1.2 times the link's time.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import tempfile
import time
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from offline import SHAPES, find_model

from plugserve.backends.torch.runner.memory_plan import GIB
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.engine.build import EngineBuilder
from plugserve.core.model_files.model_source import resolve
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings import Settings

MOST_ADDED = 1.2  # times the link's time
WORKLOADS = {"1 request": (1, 64, 24), "8 requests": (8, 64, 24), "prompt of 2048": (1, 2048, 1)}
"""Requests, prompt tokens and output tokens."""


@dataclass(frozen=True)
class Measured:
    """Seconds per step and tokens by workload, of one load."""

    num_bytes: int
    num_blocks: int
    seconds: dict[str, float]
    tokens: dict[str, list[list[int]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.5B")
    parser.add_argument("--gib", nargs="+", type=float, default=[0, 1])
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a CUDA device")
    link = link_bytes_per_s()
    print(f"{torch.cuda.get_device_name()}, host to device {link / 1e9:.1f} GB/s, {options.shape} {options.dtype}")
    loads = [measure(options.shape, gib, options.dtype) for gib in sorted({0.0, *options.gib})]
    sys.exit(0 if report(loads, link) else 1)


def link_bytes_per_s() -> float:
    """The best of some copies of 512 MiB of page-locked memory."""
    host = torch.empty(512 << 20, dtype=torch.uint8, pin_memory=True)
    device = torch.empty_like(host, device="cuda")
    best_s = float("inf")
    for _ in range(6):
        started_s = time.perf_counter()
        device.copy_(host, non_blocking=True)
        torch.cuda.synchronize()
        best_s = min(best_s, time.perf_counter() - started_s)
    return len(host) / best_s


def measure(shape: str, gib: float, dtype: str) -> Measured:
    """Load the model with gib GiB offloaded, and run the workloads."""
    started_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        path, load_format = find_model(shape, SHAPES[shape], None, Path(scratch))
        settings = Settings(
            model=[str(path)], load_format=load_format, dtype=dtype, device="cuda", cpu_offload_gb=gib,
            max_num_seqs=8, max_model_len=4096, gpu_memory_utilization=0.5,
        )  # fmt: skip
        host = PluginHost.load(settings.selection())
        engine, runner, info = EngineBuilder(settings, host, resolve(str(path), load_format=load_format)).build()
    print(f"{gib:g} GiB: loaded in {time.perf_counter() - started_s:.1f} s", flush=True)
    seconds, tokens = {}, {}
    for name, workload in WORKLOADS.items():
        run(engine, info.vocab_size, *workload)  # warm-up
        seconds[name], tokens[name] = run(engine, info.vocab_size, *workload)
    runner.close()
    measured = Measured(info.offloaded_weight_bytes, info.num_blocks, seconds, tokens)
    del engine, runner
    gc.collect()
    torch.cuda.empty_cache()
    return measured


def run(engine: Any, vocab_size: int, num_requests: int, prompt_len: int, output_len: int) -> tuple[float, list[Any]]:
    """Seconds per step after the first token (or of the prompt, if it is the only one), and greedy tokens."""
    rng = random.Random(0)
    for id in range(num_requests):
        prompt = array("i", (rng.randrange(vocab_size) for _ in range(prompt_len)))
        params = SamplingParams(max_tokens=output_len, temperature=0.0, seed=0, ignore_eos=True)
        engine.admit((b"benchmark", id), prompt, params)
    tokens: list[list[int]] = [[] for _ in range(num_requests)]
    started_s, then_s, num_then = time.perf_counter(), 0.0, 0
    while engine.has_work:
        engine.step()
        for _, message in engine.take_outputs():
            left = list(message.tokens)
            for id, count in zip(message.ids, message.num_tokens, strict=True):
                tokens[id] += left[:count]
                del left[:count]
        if not num_then and all(tokens):
            then_s, num_then = time.perf_counter(), min(map(len, tokens))
    ended_s = time.perf_counter()
    if output_len == 1:
        return ended_s - started_s, tokens
    return (ended_s - then_s) / (output_len - num_then), tokens


def report(loads: list[Measured], link: float) -> bool:
    """Print the table; False if something is not as it must be."""
    is_good, base = True, loads[0]
    head = ("offloaded GiB", "KV blocks", "workload", "ms/step", "added ms", "link ms", "ratio", "tokens")
    print(" | ".join(head))
    for load in loads:
        link_s = load.num_bytes / link
        for name, seconds in load.seconds.items():
            added_s = seconds - base.seconds[name]
            ratio = added_s / link_s if link_s else 0.0
            is_equal = load.tokens[name] == base.tokens[name]
            is_good = is_good and is_equal and ratio <= MOST_ADDED
            cells = (f"{load.num_bytes / GIB:.2f}", load.num_blocks, name, f"{seconds * 1e3:.2f}")
            cells += (f"{added_s * 1e3:.2f}", f"{link_s * 1e3:.2f}", f"{ratio:.2f}")
            print(" | ".join(map(str, (*cells, "equal" if is_equal else "DIFFERENT"))))
    print(f"added time at most {MOST_ADDED} x the link's, and equal tokens: {'yes' if is_good else 'NO'}")
    return is_good


if __name__ == "__main__":
    main()
