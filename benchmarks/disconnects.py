"""500 clients at once, half of which disconnect at a random moment: are their resources free a second later?

    python -m benchmarks.disconnects [--clients 500] [--json FILE] [-- plugserve arguments]

Starts plugserve with the embedded model. Some clients stream and some don't; some disconnect before their request is
complete, some while it waits, some during the answer, with FIN or with RST. Exit code 0: all KV blocks are free within
a second of the last client's end, no request runs or waits, the same processes still run and none is a zombie, no
engine was restarted, and every client that stayed got exactly the text that it gets alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import struct
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from tests.e2e.live_server import LiveServer

PROMPTS = ("The sea is", "Once upon a time", "The capital of France is", "Water boils at", "My favourite colour is")
RST = struct.pack("ii", 1, 0)  # SO_LINGER: on, for 0 s


@dataclass(slots=True)
class Plan:
    """One client. disconnects_after_s is None for clients that stay; sends_part: it sends only part of its request."""

    prompt: str
    is_stream: bool
    disconnects_after_s: float | None
    resets: bool
    sends_part: bool
    max_tokens: int = 24


def plans(count: int, longest_s: float, seed: int, max_tokens: int = 24) -> list[Plan]:
    """Half of the clients disconnect, at times spread over longest_s."""
    rng = random.Random(seed)
    made = [
        Plan(
            prompt=rng.choice(PROMPTS),
            is_stream=rng.random() < 0.5,
            disconnects_after_s=rng.uniform(0, longest_s) if number % 2 else None,
            resets=rng.random() < 0.5,
            sends_part=number % 2 == 1 and rng.random() < 0.1,
            max_tokens=max_tokens,
        )
        for number in range(count)
    ]
    rng.shuffle(made)
    return made


def request_bytes(plan: Plan) -> bytes:
    body = {"prompt": plan.prompt, "max_tokens": plan.max_tokens, "temperature": 0, "ignore_eos": True}
    data = json.dumps({**body, "stream": plan.is_stream}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def text_of(answer: bytes, is_stream: bool) -> str:
    """The text of a whole HTTP response, read to its end."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        return f"(refused: {head[:100]!r} {body[:200]!r})"
    if not is_stream:
        return str(json.loads(body)["choices"][0]["text"])
    events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: {")]
    return "".join(json.loads(event)["choices"][0]["text"] for event in events)


async def client(host: str, port: int, plan: Plan) -> str | None:
    """The text of a client that stays, None for one that disconnects."""
    reader, writer = await asyncio.open_connection(host, port)
    data = request_bytes(plan)
    writer.write(data[: len(data) // 2] if plan.sends_part else data)
    try:
        return text_of(await asyncio.wait_for(reader.read(-1), plan.disconnects_after_s), plan.is_stream)
    except TimeoutError:
        return None
    finally:
        if plan.resets and plan.disconnects_after_s is not None:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
        writer.close()


async def run_clients(url: str, some: list[Plan]) -> list[str | None]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return await asyncio.gather(*(client(parts.hostname, parts.port, plan) for plan in some))


def seconds_until(claim, timeout_s: float = 30.0) -> float | None:  # noqa: ANN001
    """Seconds until claim() is true; None after timeout_s."""
    started = time.monotonic()
    while not claim():
        if time.monotonic() - started > timeout_s:
            return None
        time.sleep(0.02)
    return time.monotonic() - started


def is_idle(live: LiveServer, free: float) -> bool:
    names = ("num_requests_running", "num_requests_waiting")
    return live.metric("kv_blocks_free") == free and not any(live.metric(name) for name in names)


def processes(live: LiveServer) -> dict[int, str]:
    found = {}
    for child in live.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            found[child.pid] = child.status()
    return found


def run(live: LiveServer, count: int, seed: int, max_tokens: int = 24) -> dict[str, object]:
    """Run all clients; returns the figures."""
    alone = {prompt: live.complete(prompt, max_tokens, ignore_eos=True) for prompt in PROMPTS}
    started = time.monotonic()
    asyncio.run(run_clients(live.url, plans(max(16, count // 8), 0.5, seed + 1, max_tokens)))
    warm_s = time.monotonic() - started
    seconds_until(lambda: live.metric("num_requests_running") == 0)
    free, before = live.metric("kv_blocks_free"), processes(live)
    some = plans(count, warm_s * 0.3 * count / max(16, count // 8), seed, max_tokens)
    started = time.monotonic()
    texts = asyncio.run(run_clients(live.url, some))
    clients_s = time.monotonic() - started
    blocks_free_s = seconds_until(lambda: is_idle(live, free))
    after = processes(live)
    stayed = [(plan, text) for plan, text in zip(some, texts, strict=True) if text is not None]
    wrong = [text for plan, text in stayed if text != alone[plan.prompt]]
    return {
        "clients": count,
        "left": count - len(stayed),
        "stayed": len(stayed),
        "stayed_streaming": sum(plan.is_stream for plan, _ in stayed),
        "wrong_texts": wrong[:5],
        "num_wrong_texts": len(wrong),
        "clients_s": round(clients_s, 2),
        "blocks_free_s": None if blocks_free_s is None else round(blocks_free_s, 3),
        "same_processes": sorted(before) == sorted(after),
        "zombies": Counter(after.values())["zombie"],
        "engine_restarts": live.metric("engine_restarts_total"),
        "answers_afterwards": live.complete(PROMPTS[0], max_tokens, ignore_eos=True) == alone[PROMPTS[0]],
    }


def is_good(found: dict[str, object]) -> bool:
    blocks_free_s = found["blocks_free_s"]
    clean = not found["num_wrong_texts"] and not found["zombies"] and not found["engine_restarts"]
    return bool(
        clean
        and isinstance(blocks_free_s, float)
        and blocks_free_s <= 1
        and found["same_processes"]
        and found["answers_afterwards"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("server", nargs="*", help="further arguments of plugserve, after --")
    arguments = parser.parse_args()
    with LiveServer("--max-num-seqs", "64", "--disable-log-requests", *arguments.server) as live:
        found = run(live, arguments.clients, arguments.seed)
    for name, value in found.items():
        print(f"{name:<20} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    sys.exit(0 if is_good(found) else 1)


if __name__ == "__main__":
    main()
