"""Offline workloads: the engine in this process, without HTTP, compared with vLLM on one H100.

Runs on a bare machine without a network:

    python benchmarks/offline.py --wheels ./wheels            installs an environment from a folder of wheels first
    python benchmarks/offline.py --shapes 135M 1.5B           random weights of the models' real shapes
    python benchmarks/offline.py --models ./models            real weights from models/SHAPE(.gguf) if present
    python benchmarks/offline.py --tiny --device cpu          a test run of some seconds

    python benchmarks/offline.py --shapes 7B --only "1 request" --profile      also time by kernel

Prints one table and writes JSON (--out). The floor is the time or rate of the matrix products alone (gemm_floor.py;
GPUs only). A ratio above 1 means that plugserve is faster. "ms per step" is the time from the step
with the last request's first token to the end, divided by one request's tokens in that time; throughputs count from the
first request's start to the last one's end, prompts included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rope_theta": 1000000.0, "rms_norm_eps": 1e-6}
SHAPES: dict[str, dict[str, Any]] = {
    "135M": {  # SmolLM2-135M
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    "1.5B": {  # Qwen2.5-1.5B
        **QWEN2,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
    "7B": {  # Qwen2.5-7B
        **QWEN2,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    },
}
TINY_SHAPE = {**SHAPES["135M"], "hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512}
TINY_DIVISOR = 16  # of requests and lengths, with --tiny


@dataclass(frozen=True)
class Workload:
    """num_requests prompts of prompt_len tokens, output_len tokens each. vllm: its figure by shape, if measured
    (version 0.24.0, one H100 80GB, bfloat16, random weights, prefix caching off, best of both model runners)."""

    name: str
    unit: str
    num_requests: int
    prompt_len: int
    output_len: int
    vllm: dict[str, float]
    temperature: float = 0.0


MS, OUT, TOTAL = "ms per step", "output tok/s", "total tok/s"
WORKLOADS = (
    Workload("1 request", MS, 1, 128, 256, {"135M": 1.69, "1.5B": 2.30, "7B": 6.20}),
    Workload("8 requests", MS, 8, 128, 256, {"135M": 2.11, "1.5B": 2.45, "7B": 6.45}),
    Workload("64 requests", MS, 64, 128, 256, {"135M": 2.92, "1.5B": 3.10, "7B": 7.64}),
    Workload("saturation, greedy", OUT, 512, 512, 512, {"135M": 36_800, "1.5B": 30_600, "7B": 15_980}),
    Workload("saturation, sampled", OUT, 512, 512, 512, {"135M": 33_800, "1.5B": 33_200, "7B": 15_790}, 0.8),
    Workload("prefill", TOTAL, 128, 2048, 16, {"135M": 492_300, "1.5B": 171_600, "7B": 44_660}),
    Workload("prefill and decode", TOTAL, 512, 1024, 128, {"135M": 253_900, "1.5B": 130_700, "7B": 41_500}),
)


@dataclass(frozen=True)
class Row:
    """One line of the table. ratio is against vLLM, above 1 for faster; None without a figure of vLLM. floor is in
    the row's unit; None without a GPU."""

    shape: str
    workload: str
    requests: str
    unit: str
    value: float
    vllm: float | None
    ratio: float | None
    seconds: float
    floor: float | None = None


def main() -> None:
    options = read_options()
    if options.wheels:
        run_in_new_environment(options.wheels)
    shapes = {"tiny": TINY_SHAPE} if options.tiny else {name: SHAPES[name] for name in options.shapes}
    workloads = [shrunk(one) for one in WORKLOADS] if options.tiny else list(WORKLOADS)
    workloads = [one for one in workloads if not options.only or any(word in one.name for word in options.only)]
    rows: list[Row] = []
    facts: dict[str, Any] = {}
    for name, shape in shapes.items():
        facts[name] = run_shape(name, shape, workloads, options, rows)
    print(table(rows))
    if options.out:
        report = {"machine": machine(), "engines": facts, "rows": [asdict(row) for row in rows]}
        options.out.write_text(json.dumps(report, indent=2) + "\n")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--only", nargs="+", metavar="WORD", help="workloads whose name has one of these words")
    parser.add_argument("--models", type=Path, help="folder of models, named like the shapes")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install an environment from")
    parser.add_argument("--out", type=Path, default=Path("offline.json"), help="path of the JSON file")
    parser.add_argument("--profile", action="store_true", help="run each workload once more and print time by kernel")
    parser.add_argument("--no-floor", action="store_true", help="don't measure the floor")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape and small workloads")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--setting", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="any other")
    return parser.parse_args()


def run_in_new_environment(wheels: Path) -> None:
    """Install plugserve from wheels alone, beside what this interpreter already has (a torch for its GPU), and start
    again there."""
    folder = Path(tempfile.mkdtemp(prefix="plugserve-benchmark-"))
    venv.create(folder, with_pip=True, system_site_packages=True)
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-index", "--find-links", str(wheels), "plugserve"]
    subprocess.run(install, check=True)
    index = sys.argv.index("--wheels")
    os.execv(python, [str(python), *sys.argv[:index], *sys.argv[index + 2 :]])


def shrunk(workload: Workload) -> Workload:
    def small(number: int) -> int:
        return max(2, number // TINY_DIVISOR)

    return replace(
        workload,
        num_requests=min(workload.num_requests, small(workload.num_requests)),
        prompt_len=small(workload.prompt_len),
        output_len=small(workload.output_len),
    )


# ---------------------------------------------------------------- one engine


def run_shape(
    name: str, shape: dict[str, Any], workloads: list[Workload], options: argparse.Namespace, rows: list[Row]
) -> dict[str, Any]:
    """Load one model and run all workloads on it; adds each result to rows."""
    from msgspec import to_builtins

    from plugserve.core.engine.build import EngineBuilder
    from plugserve.core.model_files.model_source import resolve
    from plugserve.core.plugin_system.plugin_host import PluginHost
    from plugserve.core.settings.settings import Settings

    with tempfile.TemporaryDirectory() as scratch:
        path, load_format = find_model(name, shape, options.models, Path(scratch))
        settings = Settings.model_validate(
            {
                "model": [str(path)],
                "load_format": load_format,
                "device": options.device,
                "dtype": options.dtype,
                "max_num_seqs": max(one.num_requests for one in workloads),
                "max_model_len": max(one.prompt_len + one.output_len for one in workloads),
                **dict(options.setting),
            }
        )
        host = PluginHost.load(settings.selection())
        started_s = time.perf_counter()
        builder = EngineBuilder(settings, host, resolve(str(path), load_format=load_format))
        engine, runner, info = builder.build()
    say(f"{name}: loaded in {time.perf_counter() - started_s:.1f} s, {info.device} {info.dtype}, {builder.slots}")
    run_workload(engine, replace(workloads[0], output_len=4), info.vocab_size)  # warm-up
    first = len(rows)
    for workload in workloads:
        if workload.num_requests > 1:  # warm these sizes up
            run_workload(engine, replace(workload, output_len=min(8, workload.output_len)), info.vocab_size)
        seconds, step_seconds = run_workload(engine, workload, info.vocab_size)
        rows.append(make_row(name, workload, seconds, step_seconds))
        say(table(rows[-1:]).splitlines()[-1])
        if options.profile:
            profile(engine, workload, info.vocab_size)
    runner.close()
    slots = builder.slots
    if info.device.startswith("cuda") and not options.no_floor:
        del engine, runner, builder
        add_floors(shape, workloads, rows, first, info.max_num_batched_tokens)
    return {**to_builtins(info), "slots": slots, "load_format": load_format}


def add_floors(
    shape: dict[str, Any], workloads: list[Workload], rows: list[Row], first: int, max_num_batched_tokens: int
) -> None:
    """Fill in the floor of rows from first on, which are in the order of workloads."""
    import gc

    import torch
    from gemm_floor import GemmFloor

    gc.collect()
    torch.cuda.empty_cache()
    floor = GemmFloor(shape)
    for i, workload in enumerate(workloads, start=first):
        step_s = floor.milliseconds(workload.num_requests, workload.num_requests) / 1e3
        num_prompt_tokens = workload.num_requests * workload.prompt_len
        chunk = min(num_prompt_tokens, max_num_batched_tokens)
        prefill_s = floor.milliseconds(chunk, max(1, chunk // workload.prompt_len)) / 1e3 * num_prompt_tokens / chunk
        best = make_row(rows[i].shape, workload, prefill_s + (workload.output_len - 1) * step_s, step_s)
        rows[i] = replace(rows[i], floor=best.value)


def profile(engine: Any, workload: Workload, vocab_size: int) -> None:
    """Print device time by kernel."""
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as recorded:
        run_workload(engine, replace(workload, output_len=min(workload.output_len, 32)), vocab_size)
    events = [one for one in recorded.key_averages() if one.self_device_time_total]
    total = sum(one.self_device_time_total for one in events) or 1
    say(f"{workload.name}: device time by kernel")
    for one in sorted(events, key=lambda one: -one.self_device_time_total)[:25]:
        microseconds = one.self_device_time_total
        say(f"  {microseconds / total:6.1%} {microseconds / 1e3:9.2f} ms {one.count:6d} x {one.key[:100]}")


def find_model(name: str, shape: dict[str, Any], models: Path | None, scratch: Path) -> tuple[Path, str]:
    """(a model of that name in models, "auto"), else (a folder with only the shape's config, "dummy")."""
    for path in (models / name, models / f"{name}.gguf") if models else ():
        if path.exists():
            return path, "auto"
    (scratch / "config.json").write_text(json.dumps(shape))
    return scratch, "dummy"


def run_workload(engine: Any, workload: Workload, vocab_size: int) -> tuple[float, float]:
    """Seconds from start to end, and seconds per token of a request once all requests have their first token."""
    from array import array

    from plugserve.core.contracts.sampling import SamplingParams

    rng = random.Random(0)
    for id in range(workload.num_requests):
        prompt = array("i", (rng.randrange(vocab_size) for _ in range(workload.prompt_len)))
        params = SamplingParams(
            max_tokens=workload.output_len, temperature=workload.temperature, seed=id, ignore_eos=True
        )
        engine.admit((b"benchmark", id), prompt, params)
    waiting = set(range(workload.num_requests))
    num_tokens = num_tokens_then = 0
    started_s = first_s = time.perf_counter()
    while engine.has_work:
        engine.step()
        for _, message in engine.take_outputs():
            if message.errors:
                raise SystemExit(f"{workload.name}: {next(iter(message.errors.values()))}")
            num_tokens += sum(message.num_tokens)
            if waiting:
                waiting.difference_update(message.ids)
                first_s, num_tokens_then = time.perf_counter(), num_tokens
    ended_s = time.perf_counter()
    expected = workload.num_requests * workload.output_len
    if num_tokens != expected:
        raise SystemExit(f"{workload.name}: {num_tokens} tokens came, {expected} were asked for")
    num_steps = max(1.0, (num_tokens - num_tokens_then) / workload.num_requests)
    return ended_s - started_s, (ended_s - first_s) / num_steps


def make_row(shape: str, workload: Workload, seconds: float, step_seconds: float) -> Row:
    num_output = workload.num_requests * workload.output_len
    num_total = num_output + workload.num_requests * workload.prompt_len
    value = {MS: 1e3 * step_seconds, OUT: num_output / seconds, TOTAL: num_total / seconds}[workload.unit]
    vllm = workload.vllm.get(shape)
    ratio = None if vllm is None else (vllm / value if workload.unit == MS else value / vllm)
    requests = f"{workload.num_requests} x {workload.prompt_len}/{workload.output_len}"
    return Row(shape, workload.name, requests, workload.unit, value, vllm, ratio, seconds)


# ---------------------------------------------------------------- the report


def table(rows: list[Row]) -> str:
    head = ("shape", "workload", "requests", "unit", "plugserve", "vLLM", "ratio", "floor")
    cells = [head]
    for row in rows:
        figures = [
            figure(row.value),
            figure(row.vllm),
            "-" if row.ratio is None else f"{row.ratio:.2f}",
            figure(row.floor),
        ]
        cells.append((row.shape, row.workload, row.requests, row.unit, *figures))
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = []
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row[:4], widths[:4], strict=True)]
        padded += [cell.rjust(width) for cell, width in zip(row[4:], widths[4:], strict=True)]
        lines.append("  ".join(padded))
    return "\n".join(lines)


def figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def machine() -> dict[str, Any]:
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {"torch": torch.__version__, "gpu": gpu, "cpu_cores": os.cpu_count(), "python": platform.python_version()}


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
