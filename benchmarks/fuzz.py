"""Fires hostile bodies at a live server and tells what is left of it: processes, memory, a bystander's text.

    plugserve --port 8000 --kv-cache-memory 64MiB --max-model-len 1k &
    python -m benchmarks.fuzz --url http://127.0.0.1:8000 --pid $!

Exit code 0: the same processes still run, resident memory grew by less than 5 % after the warm-up, the bystander's
streams all held the same text, and no answer was a 500. Linux only (/proc). The KV cache is small so that the warm-up
touches all of it: memory that was reserved at the start only counts as resident once it is used.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import sys
import time
from pathlib import Path

import httpx

from tests.server.hostile import HostileBodies

BYSTANDER = {"prompt": "The sea is", "max_tokens": 40, "temperature": 0, "ignore_eos": True, "stream": True}
WARM_UP = 1000


def family(pid: int) -> list[int]:
    """pid and all processes under it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += family(int(child))
    return sorted(found)


def resident_mib(pids: list[int]) -> dict[int, float]:
    found = {}
    for pid in pids:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        found[pid] = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024
    return found


async def bystander_text(client: httpx.AsyncClient) -> str:
    """The text of one stream."""
    text = ""
    async with client.stream("POST", "/v1/completions", json=BYSTANDER) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
    return text


async def fire(client: httpx.AsyncClient, bodies: HostileBodies, count: int, senders: int) -> collections.Counter:
    """Send count bodies, some of them on connections that break off; returns how often each status came."""
    statuses: collections.Counter = collections.Counter()
    left = iter(range(count))

    async def send() -> None:
        for number in left:
            path, content_type, body = next(bodies)
            if number % 50 == 0:
                await break_off(client.base_url, path, body)
                statuses["broken off"] += 1
                continue
            try:
                response = await client.post(path, content=body, headers={"Content-Type": content_type})
                statuses[response.status_code] += 1
            except httpx.HTTPError as error:
                statuses[type(error).__name__] += 1

    await asyncio.gather(*(send() for _ in range(senders)))
    return statuses


async def break_off(url: httpx.URL, path: str, body: bytes) -> None:
    """Promise more than is sent, wait a little, hang up."""
    _, writer = await asyncio.open_connection(url.host, url.port or 80)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body) + 9}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await asyncio.sleep(0.02)
    writer.close()


async def run(arguments: argparse.Namespace) -> bool:
    limits = httpx.Limits(max_connections=arguments.senders + 4)
    headers = {"Authorization": f"Bearer {arguments.api_key}"}
    async with httpx.AsyncClient(base_url=arguments.url, headers=headers, timeout=120, limits=limits) as client:
        expected = await bystander_text(client)
        cold = sum(resident_mib(family(arguments.pid)).values())
        await fire(client, HostileBodies(arguments.seed + 1), WARM_UP, arguments.senders)
        before = resident_mib(family(arguments.pid))
        started_s = time.perf_counter()
        fired = asyncio.create_task(fire(client, HostileBodies(arguments.seed), arguments.count, arguments.senders))
        texts = []
        while not fired.done():
            texts.append(await bystander_text(client))
        statuses = await fired
        seconds = time.perf_counter() - started_s
        health = (await client.get("/health")).status_code
        metrics = (await client.get("/metrics")).text
    after = resident_mib(family(arguments.pid))
    growth = sum(after.values()) / sum(before.values()) - 1
    is_same = set(before) == set(after)
    num_equal = sum(text == expected for text in texts)
    num_bad = sum(count for status, count in statuses.items() if status == 500)
    print(f"bodies: {arguments.count} in {seconds:.1f} s; statuses: {dict(sorted(statuses.items(), key=str))}")
    print(f"pids before: {sorted(before)}; after: {sorted(after)}; same: {is_same}; /health {health}")
    print(f"RSS MiB: cold {cold:.0f}, warm {sum(before.values()):.0f}, after {sum(after.values()):.0f} ({growth:+.1%})")
    print("  " + ", ".join(f"{pid}: {before.get(pid, 0):.0f} -> {after[pid]:.0f}" for pid in after))
    print(f"bystander streams: {num_equal} of {len(texts)} equal to the one before")
    print("\n".join(line for line in metrics.splitlines() if "blocks" in line and not line.startswith("#")))
    return is_same and growth < 0.05 and num_equal == len(texts) and not num_bad and health == 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--pid", type=int, required=True, help="process id of plugserve")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--senders", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    sys.exit(0 if asyncio.run(run(parser.parse_args())) else 1)


if __name__ == "__main__":
    main()
