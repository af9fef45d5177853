"""HTTP streaming under load: many clients over raw sockets, from several processes, compared with vLLM.

    python benchmarks/http_load.py [--clients 1 16 64 256] [--url http://host:port] [--json out.json] [-- arguments]

Without --url it starts plugserve itself. Prompts are random token ids, each of its own; answers have a fixed length;
each client sends one request after the other. Time per token is (last chunk - first chunk) / (tokens - 1); a chunk
may carry several tokens. vLLM's figures are those of version 0.24.0 on one H100 with SmolLM2-135M's shape: compare
only on such a machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

CLIENTS_PER_PROCESS = 32
RIVAL = {1: (458, 17.1, 2.12), 16: (5_077, 98.0, 2.77), 64: (14_040, 203.0, 3.75), 256: (12_790, 578.0, 17.7)}
"""By clients: output tokens a second, mean TTFT in ms, mean TPOT in ms."""


@dataclass(frozen=True)
class Load:
    """One client process's share."""

    host: str
    port: int
    num_clients: int
    num_requests: int
    prompt_tokens: int
    output_tokens: int
    vocab_size: int
    seed: int


@dataclass(frozen=True)
class Row:
    """Times in ms; client_cpu is the busiest client process's share of a core."""

    clients: int
    tokens_per_s: float
    ttft_mean: float
    ttft_p50: float
    ttft_p99: float
    tpot_mean: float
    tpot_p50: float
    tpot_p99: float
    client_cpu: float


async def one_request(load: Load, rng: random.Random) -> tuple[float, float, float]:
    """(start, first chunk, last chunk) on the monotonic clock; checks that the answer is complete."""
    prompt = [rng.randrange(load.vocab_size) for _ in range(load.prompt_tokens)]
    body = {"prompt": prompt, "max_tokens": load.output_tokens, "ignore_eos": True, "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(load.host, load.port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {load.host}\r\nContent-Type: application/json\r\n"
    started = time.monotonic()
    writer.write(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
    first = last = 0.0
    tail = b""
    while chunk := await reader.read(65536):
        if b'"text"' in chunk and b'"choices": []' not in chunk and b'"choices":[]' not in chunk:
            last = time.monotonic()
            first = first or last
        tail = (tail + chunk)[-4096:]
    writer.close()
    usage = re.search(rb'"completion_tokens": ?(\d+)', tail)
    if not usage or int(usage[1]) != load.output_tokens:
        raise SystemExit(f"an answer was not whole: ...{tail[-300:]!r}")
    return started, first, last


async def run_clients(load: Load) -> list[tuple[float, float, float]]:
    async def client(number: int) -> list[tuple[float, float, float]]:
        rng = random.Random(load.seed * 1000 + number)
        return [await one_request(load, rng) for _ in range(load.num_requests)]

    return [times for times_of in await asyncio.gather(*map(client, range(load.num_clients))) for times in times_of]


def client_process(load: Load) -> tuple[list[tuple[float, float, float]], float]:
    """The times of every request, and this process's CPU time as a share of a core."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    times = asyncio.run(run_clients(load))
    after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return times, used / (time.monotonic() - started)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def measure(url: str, clients: int, options: argparse.Namespace) -> Row:
    place = urlsplit(url)
    sizes = [
        len(range(i, clients, -(-clients // CLIENTS_PER_PROCESS))) for i in range(-(-clients // CLIENTS_PER_PROCESS))
    ]
    lengths = (options.requests, options.prompt_tokens, options.output_tokens, options.vocab_size)
    loads = [Load(place.hostname or "", place.port or 80, size, *lengths, seed) for seed, size in enumerate(sizes)]
    with ProcessPoolExecutor(len(loads)) as pool:
        results = list(pool.map(client_process, loads))
    times = [one for times_of, _ in results for one in times_of]
    ttft = [1e3 * (first - started) for started, first, _ in times]
    tpot = [1e3 * (last - first) / (options.output_tokens - 1) for _, first, last in times]
    seconds = max(last for _, _, last in times) - min(started for started, _, _ in times)
    return Row(
        clients,
        len(times) * options.output_tokens / seconds,
        sum(ttft) / len(ttft), percentile(ttft, 0.5), percentile(ttft, 0.99),
        sum(tpot) / len(tpot), percentile(tpot, 0.5), percentile(tpot, 0.99),
        max(cpu for _, cpu in results),
    )  # fmt: skip


def start_server(arguments: list[str]) -> tuple[subprocess.Popen[bytes], str]:
    """The process and its address, once it is ready."""
    command = [sys.executable, "-m", "plugserve", "serve", "--host", "127.0.0.1", "--port", "0", *arguments]
    with tempfile.NamedTemporaryFile(prefix="plugserve-http-load-", suffix=".log", delete=False) as log:
        process = subprocess.Popen(command, stderr=subprocess.STDOUT, stdout=log)
    while process.poll() is None:
        output = Path(log.name).read_text()
        if match := re.search(r"ready.*http://127\.0\.0\.1:(\d+)", output):
            return process, f"http://127.0.0.1:{match[1]}"
        time.sleep(0.1)
    raise SystemExit("the server did not start:\n" + Path(log.name).read_text()[-2000:])


TPOT = ("TPOT ms mean", "p50", "p99", "vLLM")


def line(row: Row) -> str:
    rate, ttft, tpot = RIVAL.get(row.clients, (None, None, None))
    ratio = "-" if rate is None else f"{row.tokens_per_s / rate:.2f}"
    times = [f"{x:.1f}" for x in (row.ttft_mean, row.ttft_p50, row.ttft_p99)] + [str(ttft or "-")]
    times += [f"{x:.2f}" for x in (row.tpot_mean, row.tpot_p50, row.tpot_p99)] + [str(tpot or "-")]
    return line_of(
        str(row.clients), f"{row.tokens_per_s:.0f}", str(rate or "-"), ratio, f"{row.client_cpu:.0%}", *times
    )


def line_of(*cells: str) -> str:
    return "  ".join(cell.rjust(max(7, len(name))) for cell, name in zip(cells, WIDTHS, strict=True))


WIDTHS = ("clients", "tok/s", "vLLM", "ratio", "client CPU", "TTFT ms mean", "p50", "p99", "vLLM", *TPOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 16, 64, 256])
    parser.add_argument("--requests", type=int, default=4, help="requests of each client")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--output-tokens", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=49152)
    parser.add_argument("--url")
    parser.add_argument("--json", type=Path)
    parser.add_argument("serve_arguments", nargs="*", help="for `plugserve serve`, after --")
    options = parser.parse_args()
    process, url = (None, options.url) if options.url else start_server(options.serve_arguments)
    try:
        measure(url, 1, options)  # warm-up
        rows = []
        print(line_of(*WIDTHS))
        for clients in options.clients:
            rows.append(measure(url, clients, options))
            print(line(rows[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    finally:
        if process is not None:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
