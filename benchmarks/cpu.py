"""The default model on this machine's CPU over HTTP: one stream, 8 and 32 streams, start and memory, beside peers.

    python -m benchmarks.cpu [--rounds 3] [--json out.json] [--only NAME ...] [--variant "NAME=plugserve arguments" ...]
                             [--peer NAME=http://host:port ...]

Starts plugserve once a round and variant (without --variant: as it is installed, and in float32 with PyTorch), and
asks peers that run already (any OpenAI-compatible server), in turn, so that the machine's drift hits all. Prompts are
random token ids, so no cache can help. Figures are medians of the rounds. The client is asyncio over raw sockets and
shares the cores. TARGETS and PEERS are for SmolLM2-135M-Instruct (the embedded Q4_1 file) on two cores of an AMX Xeon:
compare only on such a machine, with nothing else running.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import psutil

TARGETS = {
    "decode 120": 380, "decode 500": 330, "ttft 120": 35, "ttft 500": 100, "8 streams": 1000, "8 ttft": 150,
    "32 streams": 1600, "32 ttft": 450, "start": 1.2, "rss": 400,
}  # fmt: skip
PEERS = {
    "llama.cpp server, best settings": {
        "decode 120": 240, "decode 500": 170, "ttft 120": 96, "ttft 500": 485, "8 streams": 333, "8 ttft": 739,
        "32 streams": 375, "32 ttft": 2505, "start": 0.8, "rss": 962,
    },
    "OpenVINO's paged attention": {
        "decode 120": 99, "decode 500": 90, "ttft 120": 42, "ttft 500": 152, "8 streams": 307, "8 ttft": 162,
        "32 streams": 660, "32 ttft": 551, "start": 2.7, "rss": 473,
    },
}  # fmt: skip
UNITS = {
    "decode 120": "tok/s", "decode 500": "tok/s", "ttft 120": "ms", "ttft 500": "ms", "8 streams": "tok/s",
    "8 ttft": "ms", "32 streams": "tok/s", "32 ttft": "ms", "start": "s", "rss": "MiB",
}  # fmt: skip
LESS_IS_BETTER = {name for name in UNITS if "ttft" in name or name in ("start", "rss")}
VARIANTS = ("default=", "float32=--dtype float32")
_READY_TIMEOUT_S = 120

Figures = dict[str, float]


class Server:
    """plugserve on a free port, from its start; or a server that runs already."""

    def __init__(self, arguments: list[str] | None, url: str = "") -> None:
        self.process: psutil.Popen | None = None
        self.url = url
        if arguments is not None:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            self.url = f"http://127.0.0.1:{port}"
            words = ["serve", "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "2048", *arguments]
            self.process = psutil.Popen(
                [sys.executable, "-m", "plugserve", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        self.model = self._wait_for_model()

    def _wait_for_model(self) -> str:
        ends_s = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < ends_s:
            try:
                with urllib.request.urlopen(self.url + "/v1/models", timeout=5) as answer:
                    name = json.load(answer)["data"][0]["id"]
                if self.process is None or urllib.request.urlopen(self.url + "/ready", timeout=5).status == 200:
                    return str(name)
            except (OSError, LookupError):
                pass
            if self.process is not None and self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise SystemExit(f"{self.url} does not answer")

    def resident_mib(self) -> float:
        """Of all its processes; pages that they share count in each."""
        assert self.process is not None
        processes = [self.process, *self.process.children(recursive=True)]
        return sum(float(one.memory_info().rss) for one in processes) / (1 << 20)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()


async def stream(server: Server, num_prompt: int, num_tokens: int) -> list[float]:
    """The times of the start and of each chunk with text."""
    address = urlsplit(server.url)
    body = {
        "model": server.model, "prompt": [random.randrange(1000, 40000) for _ in range(num_prompt)], "stream": True,
        "max_tokens": num_tokens, "ignore_eos": True, "temperature": 0, "stream_options": {"include_usage": True},
    }  # fmt: skip
    raw = json.dumps(body).encode()
    times, num_generated = [time.perf_counter()], 0
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Connection: close\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw)
    async for line in reader:
        if line.startswith(b"data: {"):
            chunk = json.loads(line[6:])
            if chunk.get("usage"):
                num_generated = chunk["usage"]["completion_tokens"]
            if chunk.get("choices"):
                times.append(time.perf_counter())
    writer.close()
    if num_generated != num_tokens:
        raise SystemExit(f"{server.url} generated {num_generated} tokens, {num_tokens} were asked for")
    return times


async def one_stream(server: Server, num_prompt: int) -> Figures:
    num_tokens = 96
    times = await stream(server, num_prompt, num_tokens)
    return {
        f"decode {num_prompt}": (num_tokens - 1) / (times[-1] - times[1]),
        f"ttft {num_prompt}": (times[1] - times[0]) * 1e3,
    }


async def many_streams(server: Server, count: int) -> Figures:
    started_s = time.perf_counter()
    runs = await asyncio.gather(*(stream(server, 128, 128) for _ in range(count)))
    took_s = time.perf_counter() - started_s
    return {
        f"{count} streams": count * 128 / took_s,
        f"{count} ttft": statistics.mean(times[1] - times[0] for times in runs) * 1e3,
    }


WORKLOADS: Mapping[str, Callable[[Server], Awaitable[Figures]]] = {
    "120": lambda server: one_stream(server, 120),
    "500": lambda server: one_stream(server, 500),
    "8": lambda server: many_streams(server, 8),
    "32": lambda server: many_streams(server, 32),
}


async def run_round(server: Server, only: list[str]) -> Figures:
    await stream(server, 20, 8)  # warm
    figures: Figures = {}
    for name, work in WORKLOADS.items():
        if not only or name in only:
            figures |= await work(server)
    return figures


def measure(arguments: list[str] | None, url: str, only: list[str]) -> Figures:
    started_s = time.monotonic()
    server = Server(arguments, url)
    try:
        figures: Figures = {}
        if server.process is not None:
            asyncio.run(stream(server, 8, 2))
            figures = {"start": time.monotonic() - started_s, "rss": server.resident_mib()}
        return asyncio.run(run_round(server, only)) | figures
    finally:
        server.stop()


def print_table(medians: Mapping[str, Figures], measured_peers: Sequence[str]) -> None:
    """With each own system's ratios to the best peer, measured ones among them."""
    names = [name for name in UNITS if any(name in figures for figures in medians.values())]
    known = {**medians, **PEERS, "target": TARGETS}
    width = max(map(len, known)) + 2
    print("".ljust(width) + "".join(f"{name + ' ' + UNITS[name]:>18}" for name in names))
    for system, figures in known.items():
        cells = [f"{figures[name]:.3g}" if name in figures else "" for name in names]
        print(system.ljust(width) + "".join(f"{cell:>18}" for cell in cells))
    peers = [*PEERS.values(), *(medians[name] for name in measured_peers)]
    for system, figures in medians.items():
        if system in measured_peers:
            continue
        ratios = [_ratio(name, figures[name], peers) if name in figures else "" for name in names]
        print(f"{system} / best peer".ljust(width) + "".join(f"{ratio:>18}" for ratio in ratios))


def _ratio(name: str, value: float, peers: Sequence[Figures]) -> str:
    """Above 1 is better than the best peer."""
    others = [figures[name] for figures in peers if name in figures]
    return f"{min(others) / value:.2f}" if name in LESS_IS_BETTER else f"{value / max(others):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[], choices=list(WORKLOADS))
    parser.add_argument("--variant", action="append", help="NAME=plugserve arguments")
    parser.add_argument("--peer", action="append", default=[], help="NAME=URL of a server that runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    systems: dict[str, tuple[list[str] | None, str]] = {}
    for variant in options.variant or VARIANTS:
        name, _, words = variant.partition("=")
        systems[name] = (words.split(), "")
    for peer in options.peer:
        name, _, url = peer.partition("=")
        systems[name] = (None, url)
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in systems}
    for n in range(options.rounds):
        for name, (arguments, url) in systems.items():
            figures = measure(arguments, url, options.only)
            for key, value in figures.items():
                found[name][key].append(value)
            print(f"round {n + 1} {name}: " + ", ".join(f"{k} {v:.3g}" for k, v in figures.items()), flush=True)
    medians = {name: {k: statistics.median(values) for k, values in rows.items()} for name, rows in found.items()}
    print_table(medians, [peer.partition("=")[0] for peer in options.peer])
    if options.json:
        options.json.write_text(json.dumps({"rounds": found, "medians": medians}, indent=1))


if __name__ == "__main__":
    main()
