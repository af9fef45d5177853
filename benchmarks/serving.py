"""HTTP streaming of the embedded model on this machine: time to first token, time per token, throughput.

    python benchmarks/serving.py [--url http://host:port] [--json out.json] [-- plugserve arguments]

Without --url it starts plugserve itself. Prompts are random token ids, different each time, so no cache can help;
answers have a fixed length. Prints p50 and p99, and ratios against peers measured on two cores of an AMX Xeon with the
same model (client on the same cores): compare only with figures from such a machine, and with the machine idle.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

# one stream: output tokens a second; TTFT of 128 and 512 tokens in ms. Eight streams: tokens a second, mean TTFT in ms
PEERS = {
    "llama.cpp server Q4_1": {"one": 173.7, "ttft_128": 92.6, "ttft_512": 390.0, "eight": 214.0},
    "transformers serve bf16": {"one": 26.8, "ttft_128": 77.4, "ttft_512": 168.0, "eight": 26.0},
    "vLLM CPU 0.32 bf16": {"one": 40.3, "ttft_128": 48.7, "ttft_512": 115.0, "eight": 261.0},
}


@dataclass
class Row:
    """One workload's figures; times in ms."""

    name: str
    num_streams: int
    prompt_tokens: int
    output_tokens: int
    tokens_per_s: float
    ttft_p50: float
    ttft_p99: float
    tpot_p50: float
    tpot_p99: float


async def stream(http: httpx.AsyncClient, url: str, prompt: list[int], num_tokens: int) -> list[float]:
    """Arrival times of the chunks, the first entry being the start."""
    body = {"prompt": prompt, "max_tokens": num_tokens, "ignore_eos": True, "temperature": 0, "stream": True}
    times = [time.perf_counter()]
    async with http.stream("POST", url + "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                times.append(time.perf_counter())
    return times


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


async def measure(url: str, name: str, num_streams: int, prompt_tokens: int, output_tokens: int, rounds: int) -> Row:
    rng = random.Random(f"{name} {prompt_tokens}")
    ttft, tpot, rates = [], [], []
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=512)) as http:
        for n in range(rounds + 1):
            prompts = [[rng.randrange(1000, 40000) for _ in range(prompt_tokens)] for _ in range(num_streams)]
            started = time.perf_counter()
            runs = await asyncio.gather(*(stream(http, url, prompt, output_tokens) for prompt in prompts))
            if n == 0:
                continue  # warm-up
            rates.append(num_streams * output_tokens / (time.perf_counter() - started))
            ttft += [(times[1] - times[0]) * 1e3 for times in runs]
            tpot += [(times[-1] - times[1]) * 1e3 / max(1, output_tokens - 1) for times in runs]
    return Row(
        name,
        num_streams,
        prompt_tokens,
        output_tokens,
        percentile(rates, 0.5),
        percentile(ttft, 0.5),
        percentile(ttft, 0.99),
        percentile(tpot, 0.5),
        percentile(tpot, 0.99),
    )


def print_table(rows: list[Row]) -> None:
    print(f"{'workload':28} {'tok/s':>8} {'TTFT p50':>9} {'p99':>8} {'TPOT p50':>9} {'p99':>8}")
    for row in rows:
        print(
            f"{row.name:28} {row.tokens_per_s:8.1f} {row.ttft_p50:9.1f} {row.ttft_p99:8.1f} "
            f"{row.tpot_p50:9.2f} {row.tpot_p99:8.2f}"
        )
    figures = {
        "one": 1000 / rows[0].tpot_p50,
        "ttft_128": rows[0].ttft_p50,
        "ttft_512": rows[1].ttft_p50,
        "eight": rows[2].tokens_per_s,
    }
    print("\nratios, ours / theirs (tokens a second: higher is better; TTFT: lower is better)")
    for peer, theirs in PEERS.items():
        print(f"{peer:28} " + "  ".join(f"{key} {figures[key] / theirs[key]:.2f}" for key in theirs))


def start_server(arguments: list[str]) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "plugserve", "--host", "127.0.0.1", "--port", "0", *arguments]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"ready on (\S+)", line):
            return server, found[1]
    raise SystemExit("the server did not start; run plugserve by itself to see why")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--url")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options, arguments = parser.parse_known_args()
    server, url = (None, options.url) if options.url else start_server([one for one in arguments if one != "--"])
    try:
        rows = [
            asyncio.run(measure(url, "1 stream, 128/128", 1, 128, 128, options.rounds)),
            asyncio.run(measure(url, "1 stream, 512/32", 1, 512, 32, options.rounds)),
            asyncio.run(measure(url, "8 streams, 128/128", 8, 128, 128, options.rounds)),
            asyncio.run(measure(url, "64 streams, 128/64", 64, 128, 64, 1)),
        ]
    finally:
        if server is not None:
            server.terminate()
            server.wait(30)
    print_table(rows)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
