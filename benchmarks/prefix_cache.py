"""The gain of the prefix cache, and its cost for prompts without a common prefix.

    python benchmarks/prefix_cache.py gain [--json out.json] [-- plugserve arguments]
    python benchmarks/prefix_cache.py cost [--model tiny|embedded] [--requests 2000] [--pairs 10] [--json out.json]

gain: 16 requests that share 1,500 tokens, on the embedded model: time to first token with a separate cache for each
request (cold: the same prompts with different cache_salt) and with one cache for all (warm), one after another and all
at once; and the hits in tokens, with the expected number.

cost: prompts without a common prefix, on two servers, one with and one without the cache: user + system CPU time of all
of a server's processes. A pair is 2,000 requests for each server, alternating in groups of 100, so that other load on
the machine affects both alike. The tiny model takes almost no time, so that the cache's share of the cost is as large
as possible.
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
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
from tokenizers import Tokenizer, models, pre_tokenizers

TURN = 100
NUM_SHARING, SHARED_TOKENS, OWN_TOKENS, BLOCK_SIZE = 16, 1500, 20, 16
TINY = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 256, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5, "eos_token_id": None, "bos_token_id": None,
}  # fmt: skip


class Server:
    """plugserve with arguments, on a free port of this machine."""

    def __init__(self, arguments: list[str]) -> None:
        command = [sys.executable, "-m", "plugserve", "--host", "127.0.0.1", "--port", "0"]
        self._process = subprocess.Popen(
            [*command, "--no-plugin", "request-log", *arguments], stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if found := re.search(r"ready on (\S+)", line):
                self.url = found[1]
                return
        raise SystemExit("the server did not start; run plugserve by itself to see why")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.wait(30)

    def cpu_s(self) -> float:
        """User and system time of the server's processes so far."""
        parent = psutil.Process(self._process.pid)
        times = [process.cpu_times() for process in [parent, *parent.children(recursive=True)]]
        return sum(one.user + one.system for one in times)

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        return sum(map(float, re.findall(rf"^plugserve_{name}{{[^}}]*}} (\S+)$", text, flags=re.M)))


# ---------------------------------------------------------------- gain


async def first_token_s(http: httpx.AsyncClient, url: str, prompt: list[int], salt: str) -> float:
    body = {"prompt": prompt, "max_tokens": 4, "ignore_eos": True, "temperature": 0, "stream": True, "cache_salt": salt}
    started, first = time.perf_counter(), 0.0
    async with http.stream("POST", url + "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {") and not first:
                first = time.perf_counter() - started
    return first


async def one_after_another(url: str, prompts: list[list[int]], salts: list[str]) -> list[float]:
    async with httpx.AsyncClient(timeout=900) as http:
        return [await first_token_s(http, url, prompt, salt) for prompt, salt in zip(prompts, salts, strict=True)]


async def all_at_once(url: str, prompts: list[list[int]], salts: list[str]) -> list[float]:
    async with httpx.AsyncClient(timeout=900) as http:
        calls = [first_token_s(http, url, prompt, salt) for prompt, salt in zip(prompts, salts, strict=True)]
        return await asyncio.gather(*calls)


def measure_gain(arguments: list[str]) -> list[dict[str, Any]]:
    rng = random.Random(0)
    shared = [rng.randrange(1000, 40000) for _ in range(SHARED_TOKENS)]
    prompts = [shared + [rng.randrange(1000, 40000) for _ in range(OWN_TOKENS)] for _ in range(NUM_SHARING)]
    by_hand = (NUM_SHARING - 1) * (SHARED_TOKENS // BLOCK_SIZE * BLOCK_SIZE)
    rows = []
    with Server(["--enable-prefix-caching", *arguments]) as server:
        for name, run in (("one after another", one_after_another), ("all at once", all_at_once)):
            asyncio.run(run(server.url, prompts[:1], ["warm-up"]))
            cold = asyncio.run(run(server.url, prompts, [f"{name} {n}" for n in range(NUM_SHARING)]))
            asked, found = server.metric("prefix_cache_queries_total"), server.metric("prefix_cache_hits_total")
            warm = asyncio.run(run(server.url, prompts, [name] * NUM_SHARING))
            asked = server.metric("prefix_cache_queries_total") - asked
            found = server.metric("prefix_cache_hits_total") - found
            rows.append(
                {
                    "requests": name,
                    "cold_ttft_p50_s": statistics.median(cold),
                    "warm_ttft_p50_s": statistics.median(warm),
                    "ratio": statistics.median(cold) / statistics.median(warm),
                    "hit_tokens": found,
                    "hit_tokens_by_hand": by_hand,
                    "hit_rate": found / asked,
                    "hit_rate_by_hand": by_hand / (NUM_SHARING * (SHARED_TOKENS + OWN_TOKENS)),
                }
            )
    return rows


def print_gain(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'16 requests, 1,500 tokens shared':34} {'TTFT p50 cold':>14} {'warm':>9} {'ratio':>6} "
        f"{'hit rate':>9} by hand"
    )
    for row in rows:
        print(
            f"{row['requests']:34} {row['cold_ttft_p50_s']:12.3f} s {row['warm_ttft_p50_s']:7.3f} s "
            f"{row['ratio']:6.1f} {row['hit_rate']:9.4f} {row['hit_rate_by_hand']:7.4f}"
        )


# ---------------------------------------------------------------- cost


def write_tiny_model(folder: Path) -> list[str]:
    """A model that takes no time, and the arguments that serve it."""
    (folder / "config.json").write_text(json.dumps(TINY))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    return ["--model", str(folder), "--load-format", "dummy", "--num-gpu-blocks-override", "1500"]


async def load(url: str, num_requests: int, num_clients: int, rng: random.Random) -> None:
    """Unique prompts of 64 to 128 characters, four tokens each."""
    todo = iter([f"{rng.getrandbits(64):016x} " * rng.randint(4, 7) for _ in range(num_requests)])

    async def client(http: httpx.AsyncClient) -> None:
        for prompt in todo:
            body = {"prompt": prompt, "max_tokens": 4, "ignore_eos": True, "temperature": 0}
            (await http.post(url + "/v1/completions", json=body)).raise_for_status()

    async with httpx.AsyncClient(timeout=900) as http:
        await asyncio.gather(*(client(http) for _ in range(num_clients)))


def turn_cpu_s(server: Server, num_requests: int, rng: random.Random) -> float:
    before = server.cpu_s()
    asyncio.run(load(server.url, num_requests, 8, rng))
    return server.cpu_s() - before


def measure_cost(model: str, num_requests: int, num_pairs: int, arguments: list[str]) -> dict[str, Any]:
    rng, pairs = random.Random(0), []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        arguments = [*(write_tiny_model(folder) if model == "tiny" else []), *arguments]
        off = stack.enter_context(Server(arguments))
        on = stack.enter_context(Server(["--enable-prefix-caching", *arguments]))
        for server in (off, on):
            turn_cpu_s(server, max(8, num_requests // 10), rng)  # warm-up
        for number in range(num_pairs):
            spent = {off.url: 0.0, on.url: 0.0}
            for turn in range(max(1, num_requests // TURN)):
                for server in (off, on) if (number + turn) % 2 else (on, off):
                    spent[server.url] += turn_cpu_s(server, min(TURN, num_requests), rng)
            pairs.append((spent[off.url], spent[on.url]))
            print(f"pair {number + 1}: off {pairs[-1][0]:.2f} s, on {pairs[-1][1]:.2f} s", file=sys.stderr, flush=True)
        hits = on.metric("prefix_cache_hits_total")
    more = [(on_s / off_s - 1) * 100 for off_s, on_s in pairs]
    low, high = interval_of_median(more)
    return {
        "model": model,
        "requests": num_requests,
        "off_ms_a_request": statistics.median(off_s for off_s, _ in pairs) / num_requests * 1e3,
        "on_ms_a_request": statistics.median(on_s for _, on_s in pairs) / num_requests * 1e3,
        "more_percent": statistics.median(more),
        "more_percent_low": low,
        "more_percent_high": high,
        "pairs": pairs,
        "hit_tokens": hits,
    }


def interval_of_median(values: list[float]) -> tuple[float, float]:
    """A 95 % bootstrap interval."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(4000))
    return medians[100], medians[-101]


def print_cost(row: dict[str, Any]) -> None:
    print(
        f"{row['model']} model, {len(row['pairs'])} pairs of {row['requests']} unique requests: CPU a request "
        f"{row['off_ms_a_request']:.3f} ms off, {row['on_ms_a_request']:.3f} ms on; on costs "
        f"{row['more_percent']:+.2f} % (median; 95 % interval {row['more_percent_low']:+.2f} to "
        f"{row['more_percent_high']:+.2f} %)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=["gain", "cost"])
    parser.add_argument("--model", choices=["tiny", "embedded"], default="tiny")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options, arguments = parser.parse_known_args()
    arguments = [one for one in arguments if one != "--"]
    figures: Any
    if options.what == "gain":
        figures = measure_gain(arguments)
        print_gain(figures)
    else:
        figures = measure_cost(options.model, options.requests, options.pairs, arguments)
        print_cost(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
