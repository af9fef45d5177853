"""Sends malformed and hostile bodies to a running server and checks its processes, memory and concurrent streams.

    python -m benchmarks.fuzz [--count 10000] [--json FILE] [-- plugserve arguments]

Starts plugserve with the embedded model. Types, sizes, nesting, unicode, huge numbers, NaN, bad grammars and schemas,
regex bombs, wrong content types, truncated bodies, slow senders. Exit code 0: the supervisor, workers and engines are
the same processes as before, their total resident memory grew by less than 5 %, the control client's streams all have
the same text, no answer was a 500, and every KV block is free again. Linux only (/proc).

The baseline of the memory is taken after a warm-up: the whole KV cache (the system allocates its pages at their first
write, which is not a leak) and one tenth as many bodies of another seed. Child processes that compile grammars and
render templates may be replaced: they are killed by design.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.e2e.live_server import LiveServer
from tests.server.hostile import HostileBodies

BYSTANDER = {"prompt": "The sea is", "max_tokens": 40, "temperature": 0, "ignore_eos": True, "stream": True}
LASTING = ("plugserve.core.engine", "plugserve.server.worker", "plugserve")


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the server: what it runs and its resident memory."""

    role: str
    rss_mib: float


def family(live: LiveServer) -> dict[int, Process]:
    """The supervisor and all processes under it, by pid."""
    found = {}
    for process in [psutil.Process(live.process.pid), *live.children()]:
        with contextlib.suppress(psutil.NoSuchProcess):
            line = process.cmdline()
            role = line[line.index("-m") + 1] if "-m" in line else line[0]
            found[process.pid] = Process(role, process.memory_info().rss / 2**20)
    return found


def lasting(processes: dict[int, Process]) -> set[int]:
    return {pid for pid, process in processes.items() if process.role in LASTING}


def total_mib(processes: dict[int, Process]) -> float:
    return sum(process.rss_mib for process in processes.values())


async def touch_kv_cache(client: httpx.AsyncClient, live: LiveServer) -> float:
    """Fill the KV cache with prompts of open connections, then close them; returns the share of blocks used."""
    info = (await client.get("/v1/models")).json()["data"][0]
    num_blocks = live.metric("kv_blocks")
    length, num_tokens = min(1024, info["max_model_len"] - 64), int(num_blocks * 16 * 0.97)
    begun = 0

    async def hold(number: int) -> None:
        nonlocal begun
        prompt = [1000 + number] * min(length, num_tokens - number * length)
        body = {"prompt": prompt, "max_tokens": 60, "ignore_eos": True, "stream": True}
        async with client.stream("POST", "/v1/completions", json=body) as response:
            async for _ in response.aiter_lines():
                begun += 1
                break
            await asyncio.sleep(600)

    holders = [asyncio.create_task(hold(number)) for number in range(-(-num_tokens // length))]
    least, deadline = num_blocks, time.monotonic() + 600
    while least > num_blocks * 0.06 and begun < len(holders) and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        least = min(least, await asyncio.to_thread(live.metric, "kv_blocks_free"))
    for holder in holders:
        holder.cancel()
    await asyncio.gather(*holders, return_exceptions=True)
    return 1 - least / num_blocks


async def control_text(client: httpx.AsyncClient) -> str:
    """The text of one stream."""
    text = ""
    async with client.stream("POST", "/v1/completions", json=BYSTANDER) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
    return text


async def fire(
    client: httpx.AsyncClient, bodies: HostileBodies, count: int, senders: int, faults: list[str]
) -> collections.Counter[str]:
    """Send count bodies, some on connections that close early or send slowly; returns the number of each status.
    faults receives each 500 answer with its body."""
    statuses: collections.Counter[str] = collections.Counter()
    left = iter(range(count))
    crawling: list[asyncio.Task[None]] = []

    async def send() -> None:
        for number in left:
            path, content_type, body = next(bodies)
            if number % 50 == 0:
                await close_early(client.base_url, path, body)
                statuses["broken off"] += 1
                continue
            if number % 100 == 1:
                crawling.append(asyncio.create_task(send_slowly(client.base_url, path, body)))
                statuses["crawled"] += 1
                continue
            try:
                response = await client.post(path, content=body, headers={"Content-Type": content_type})
                statuses[str(response.status_code)] += 1
                if response.status_code == 500:
                    faults.append(f"{path} {response.text} {body[:300]!r}")
            except httpx.HTTPError as error:
                statuses[type(error).__name__] += 1

    await asyncio.gather(*(send() for _ in range(senders)))
    await asyncio.gather(*crawling, return_exceptions=True)
    return statuses


async def _promise(url: httpx.URL, path: str, length: int) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection(url.host, url.port or 80)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    writer.write(head.encode())
    return writer


async def close_early(url: httpx.URL, path: str, body: bytes) -> None:
    """Announce a longer body than is sent, wait a little, close the connection."""
    writer = await _promise(url, path, len(body) + 9)
    writer.write(body)
    await asyncio.sleep(0.02)
    writer.close()


async def send_slowly(url: httpx.URL, path: str, body: bytes) -> None:
    """Send a body a few bytes at a time over some seconds, and close the connection before its end."""
    writer = await _promise(url, path, len(body) + 100)
    for start in range(0, min(len(body), 60), 3):
        writer.write(body[start : start + 3])
        await asyncio.sleep(0.2)
    writer.close()


async def attack(live: LiveServer, arguments: argparse.Namespace) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=arguments.senders + 60)
    async with httpx.AsyncClient(base_url=live.url, timeout=600, limits=limits) as client:
        expected = await control_text(client)
        cold = family(live)
        touched = await touch_kv_cache(client, live)
        warm_up = max(100, arguments.count // 10)
        await fire(client, HostileBodies(arguments.seed + 1, is_wide=True), warm_up, arguments.senders, [])
        before, free = family(live), live.metric("kv_blocks_free")
        started_s = time.perf_counter()
        bodies = HostileBodies(arguments.seed, is_wide=True)
        faults: list[str] = []
        fired = asyncio.create_task(fire(client, bodies, arguments.count, arguments.senders, faults))
        texts = []
        while not fired.done():
            texts.append(await control_text(client))
        statuses = await fired
        seconds = time.perf_counter() - started_s
        await asyncio.sleep(1)
        after = family(live)
        return {
            "bodies": arguments.count,
            "seconds": round(seconds, 1),
            "statuses": dict(sorted(statuses.items())),
            "faults": faults[:10],
            "same_processes": lasting(before) == lasting(after),
            "rss_mib": " -> ".join(f"{total_mib(some):.0f}" for some in (cold, before, after)),
            "growth": round(total_mib(after) / total_mib(before) - 1, 4),
            "processes": [
                f"{process.role} {pid}: {before[pid].rss_mib if pid in before else 0:.0f} -> {process.rss_mib:.0f} MiB"
                for pid, process in after.items()
            ],
            "kv_cache_touched": round(touched, 3),
            "kv_blocks_lost": free - live.metric("kv_blocks_free"),
            "control_streams": f"{sum(text == expected for text in texts)} of {len(texts)} streams equal",
            "control_is_equal": all(text == expected for text in texts),
            "health": (await client.get("/health")).status_code,
        }  # fmt: skip


def is_good(found: dict[str, Any]) -> bool:
    return bool(
        found["same_processes"]
        and found["growth"] < 0.05
        and found["control_is_equal"]
        and found["health"] == 200
        and not found["kv_blocks_lost"]
        and not found["statuses"].get("500")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--senders", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("server", nargs="*", help="further arguments of plugserve, after --")
    arguments = parser.parse_args()
    with LiveServer("--enable-auto-tool-choice", "--disable-log-requests", *arguments.server) as live:
        found = asyncio.run(attack(live, arguments))
    for name, value in found.items():
        print(f"{name:<20} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    sys.exit(0 if is_good(found) else 1)


if __name__ == "__main__":
    main()
