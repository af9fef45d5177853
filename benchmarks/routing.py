"""A router's gain by prefix affinity, and its cost for each request.

    python benchmarks/routing.py gain [--conversations 16] [--turns 5] [--blocks 500] [--json out.json]
    python benchmarks/routing.py cost [--requests 2000] [--clients 1 16] [--json out.json]

gain: conversations with two servers of the embedded model behind `plugserve route`, once with each policy. Each turn
sends the whole conversation and a new message; turns of all conversations are mixed. The KV memory of one server holds
about two thirds of the conversations, that of both all of them. Hit rate is cached tokens / prompt tokens, as usage
reports them; servers are started anew for each policy.

cost: a server that does nothing, directly and through a router: whole answers of 2 KB, and streams of 64 events; times
in ms, and the router's processor time for each request or event.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

POLICIES = ("round-robin", "least-loaded", "prefix")
WORDS = ("river", "stone", "window", "garden", "letter", "music", "winter", "paper", "market", "bridge", "signal")
NUM_EVENTS = 64


class Process:
    """plugserve with arguments, on a free port of this machine."""

    def __init__(self, *arguments: str) -> None:
        words = list(arguments)
        command = [words.pop(0)] if words and words[0] == "route" else []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "plugserve", *command, "--host", "127.0.0.1", "--port", "0", *words],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if found := re.search(r"ready on (\S+)", line):
                self.url = found[1]
                return
        raise SystemExit("plugserve did not start; run it by itself to see why")

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.wait(30)

    def cpu_s(self) -> float:
        times = psutil.Process(self._process.pid).cpu_times()
        return times.user + times.system


# ---------------------------------------------------------------- gain


@dataclass
class Conversation:
    """Messages so far, and the figures of its turns."""

    rng: random.Random
    messages: list[dict[str, str]] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    first_token_s: list[float] = field(default_factory=list)
    upstreams: Counter[str] = field(default_factory=Counter)

    async def turn(self, http: httpx.AsyncClient, words: int, max_tokens: int) -> None:
        text = " ".join(self.rng.choice(WORDS) for _ in range(words))
        self.messages.append({"role": "user", "content": text})
        body = {"messages": self.messages, "max_tokens": max_tokens, "ignore_eos": True, "temperature": 0}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        started, answer = time.perf_counter(), ""
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            self.upstreams[response.headers["x-plugserve-upstream"]] += 1
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                delta = event["choices"][0]["delta"].get("content") if event["choices"] else None
                if delta and not answer:
                    self.first_token_s.append(time.perf_counter() - started)
                answer += delta or ""
                if usage := event.get("usage"):
                    self.prompt_tokens += usage["prompt_tokens"]
                    self.cached_tokens += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        self.messages.append({"role": "assistant", "content": answer})


async def converse(url: str, options: argparse.Namespace) -> list[Conversation]:
    """All turns of all conversations in mixed order, two at a time, each after the turn before it."""
    conversations = [Conversation(random.Random(number)) for number in range(options.conversations)]
    order = random.Random(1)
    async with httpx.AsyncClient(base_url=url, timeout=900) as http:
        for _ in range(options.turns):
            todo = iter(order.sample(conversations, len(conversations)))

            async def client(todo: Any = todo) -> None:
                for conversation in todo:
                    await conversation.turn(http, options.words, options.max_tokens)

            await asyncio.gather(client(), client())
    return conversations


def gain(policy: str, options: argparse.Namespace) -> dict[str, Any]:
    server = ["--enable-prefix-caching", "--num-gpu-blocks-override", str(options.blocks), "--max-model-len", "2048"]
    with ExitStack() as stack:
        one, two = (stack.enter_context(Process(*server, "--disable-log-requests")) for _ in range(2))
        upstreams = ["--upstream", f"one={one.url}", "--upstream", f"two={two.url}"]
        router = stack.enter_context(Process("route", *upstreams, "--policy", policy, "--disable-log-requests"))
        started = time.perf_counter()
        conversations = asyncio.run(converse(router.url, options))
        seconds = time.perf_counter() - started
    first = sorted(value for one in conversations for value in one.first_token_s)
    prompt, cached = (sum(getattr(one, name) for one in conversations) for name in ("prompt_tokens", "cached_tokens"))
    return {
        "policy": policy,
        "requests": len(first),
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "hit_rate": cached / prompt,
        "ttft_p50_ms": percentile(first, 0.5) * 1e3,
        "ttft_p99_ms": percentile(first, 0.99) * 1e3,
        "seconds": seconds,
        "requests_by_upstream": dict(sum((one.upstreams for one in conversations), Counter())),
    }


def print_gain(rows: list[dict[str, Any]]) -> None:
    print(f"{'policy':14}{'requests':>9}{'prompt':>9}{'cached':>9}{'hit rate':>10}{'TTFT p50':>11}{'p99':>9}{'all':>9}")
    for row in rows:
        print(
            f"{row['policy']:14}{row['requests']:9}{row['prompt_tokens']:9}{row['cached_tokens']:9}"
            f"{row['hit_rate']:10.3f}{row['ttft_p50_ms']:8.0f} ms{row['ttft_p99_ms']:6.0f} ms{row['seconds']:7.1f} s"
        )


# ---------------------------------------------------------------- cost


def serve_nothing(port: Any) -> None:
    """A server that answers at once; port gets its port."""
    asyncio.run(_serve_nothing(port))


async def _serve_nothing(port: Any) -> None:
    models = json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}).encode()
    whole = json.dumps({"choices": [{"message": {"content": "x" * 2000}}]}).encode()
    event = b"data: " + json.dumps({"choices": [{"delta": {"content": "word"}}], "pad": "x" * 180}).encode() + b"\n\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await _head(reader):
            length = re.search(rb"content-length: (\d+)", head.lower())
            body = await reader.readexactly(int(length[1])) if length else b""
            if b'"stream"' in body:
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                )
                for _ in range(NUM_EVENTS):
                    writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                    await asyncio.sleep(0.001)
                writer.write(b"0\r\n\r\n")
            else:
                data = whole if head.startswith(b"POST") else models
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data)
                )
                writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


async def ask(url: str, num_requests: int, num_clients: int, is_stream: bool) -> list[float]:
    """Seconds of each request, over kept connections."""
    address = httpx.URL(url)
    body = {"model": "m", "messages": [{"role": "user", "content": "word " * 400}]} | (
        {"stream": True} if is_stream else {}
    )
    data = json.dumps(body).encode()
    fields = f"host: {address.host}\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    request = f"POST /v1/chat/completions HTTP/1.1\r\n{fields}\r\n\r\n".encode() + data
    seconds: list[float] = []

    async def client(count: int) -> None:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        for _ in range(count):
            started = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            if is_stream:
                await reader.readuntil(b"\r\n0\r\n\r\n")
            else:
                length = re.search(rb"content-length: (\d+)", head)
                assert length is not None
                await reader.readexactly(int(length[1]))
            seconds.append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(client(num_requests // num_clients) for _ in range(num_clients)))
    return sorted(seconds)


def cost(options: argparse.Namespace) -> list[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    server = context.Process(target=serve_nothing, args=(sender,), daemon=True)
    server.start()
    direct = f"http://127.0.0.1:{receiver.recv()}"
    rows = []
    try:
        with Process("route", "--upstream", direct, "--disable-log-requests") as router:
            for kind in ("whole", "stream"):
                for clients in options.clients:
                    count = options.requests // (NUM_EVENTS // 4 if kind == "stream" else 1)
                    asyncio.run(ask(router.url, max(clients, count // 10), clients, kind == "stream"))  # warm-up
                    alone = asyncio.run(ask(direct, count, clients, kind == "stream"))
                    before_s = router.cpu_s()
                    routed = asyncio.run(ask(router.url, count, clients, kind == "stream"))
                    spent_s = (router.cpu_s() - before_s) / len(routed)
                    rows.append(
                        {
                            "answer": kind,
                            "clients": clients,
                            **{
                                f"{name}_p{share}_ms": percentile(values, share / 100) * 1e3
                                for name, values in (("direct", alone), ("routed", routed))
                                for share in (50, 99)
                            },
                            "router_cpu_us": spent_s * 1e6 / (NUM_EVENTS if kind == "stream" else 1),
                        }
                    )
    finally:
        server.terminate()
    return rows


def print_cost(rows: list[dict[str, Any]]) -> None:
    print(f"{'answer':8}{'clients':>8}{'direct p50':>12}{'p99':>10}{'routed p50':>13}{'p99':>10}   router's CPU")
    for row in rows:
        unit = "an event" if row["answer"] == "stream" else "a request"
        print(
            f"{row['answer']:8}{row['clients']:8}{row['direct_p50_ms']:9.2f} ms{row['direct_p99_ms']:7.2f} ms"
            f"{row['routed_p50_ms']:10.2f} ms{row['routed_p99_ms']:7.2f} ms{row['router_cpu_us']:9.0f} us {unit}"
        )


def percentile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=1000, method="inclusive")[round(share * 1000) - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("gain", "cost"))
    parser.add_argument("--policies", nargs="+", default=POLICIES, choices=POLICIES)
    parser.add_argument("--conversations", type=int, default=16)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--words", type=int, default=80, help="in each message")
    parser.add_argument("--max-tokens", type=int, default=16, help="of each answer")
    parser.add_argument("--blocks", type=int, default=420, help="KV blocks of each server")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]]
    if options.what == "gain":
        rows = []
        for policy in options.policies:
            rows.append(gain(policy, options))
            print(f"{policy}: hit rate {rows[-1]['hit_rate']:.3f}", file=sys.stderr, flush=True)
        print_gain(rows)
    else:
        rows = cost(options)
        print_cost(rows)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
