"""Hostile clients in numbers, as coroutines that return what they saw; benchmarks/attack.py runs them."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

FORGED_LINE = "ERROR: forged by a client"


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and the attacker's key."""

    url: str
    key: str

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    def head(self, path: str, length: int, *more: str) -> bytes:
        lines = [f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {self.key}", "Connection: close"]
        lines += ["Content-Type: application/json", f"Content-Length: {length}", *more]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def request(self, path: str, body: object) -> bytes:
        data = json.dumps(body).encode()
        return self.head(path, len(data)) + data


Flood = Callable[[Target, int, float], Awaitable[str]]
"""(target, how many, for about how many seconds) -> what was seen."""


@asynccontextmanager
async def connection(target: Target) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def answered(target: Target, data: bytes, timeout_s: float) -> str:
    """The status of the answer, "left" where it took longer than timeout_s, "cut" where the server closed."""
    try:
        async with asyncio.timeout(timeout_s), connection(target) as (reader, writer):
            writer.write(data)
            line = await reader.readline()
            status = line.split(b" ")[1].decode() if line.startswith(b"HTTP/") else "cut"
            await reader.read(-1)
            return status
    except TimeoutError:
        return "left"
    except OSError:
        return "cut"


async def spread(target: Target, requests: list[bytes], seconds: float, at_once: int, timeout_s: float) -> Counter[str]:
    """Send requests, at_once at a time, begun evenly over seconds; count how they ended."""
    gate = asyncio.Semaphore(at_once)

    async def send(number: int, data: bytes) -> str:
        await asyncio.sleep(seconds * number / len(requests))
        async with gate:
            return await answered(target, data, timeout_s)

    return Counter(await asyncio.gather(*(send(number, data) for number, data in enumerate(requests))))


def listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in counts.most_common())


async def stalled_sockets(target: Target, count: int, seconds: float) -> str:
    """Connections that send nothing, half a header, or a body that stops after its first bytes."""
    starts = (b"", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n", target.head("/v1/completions", 1 << 20) + b'{"a":')
    ended: Counter[str] = Counter()

    async def stall(number: int) -> None:
        try:
            async with connection(target) as (reader, writer):
                writer.write(starts[number % len(starts)])
                async with asyncio.timeout(seconds):
                    answer = await reader.read(-1)
                ended[answer[9:12].decode() if answer else "closed"] += 1
        except TimeoutError:
            ended["still open"] += 1
        except OSError as error:
            ended[type(error).__name__] += 1

    await asyncio.gather(*(stall(number) for number in range(count)))
    return listed(ended)


async def hostile_grammars(target: Target, count: int, seconds: float) -> str:
    """17 KB of patterns that are compared with each other, each request with other ones; most hang up."""
    requests = []
    for number in range(count):
        patterns = {f"^k{number}_{index}_.*a.*b.*$": {"type": "string"} for index in range(400)}
        schema = {"type": "object", "patternProperties": patterns}
        format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4, "response_format": format}
        requests.append(target.request("/v1/chat/completions", body))
    return listed(await spread(target, requests, seconds, at_once=16, timeout_s=min(6.0, max(0.5, seconds / 4))))


async def large_bodies(target: Target, count: int, seconds: float) -> str:
    """Many keys, many numbers, deep brackets, and texts, of some megabytes each."""
    bias = {str(index): 1 for index in range(400_000)}
    bodies = [
        json.dumps({"prompt": "x", "max_tokens": 1, "logit_bias": bias}).encode(),
        json.dumps({"prompt": list(range(1_000_000)), "max_tokens": 1}).encode(),
        b'{"prompt":' + b"[" * 5_000_000 + b"]" * 5_000_000 + b"}",
        json.dumps({"messages": [{"role": "user", "content": "<|im_end|>" * 1_500_000}], "max_tokens": 1}).encode(),
    ]
    paths = ("/v1/completions", "/v1/completions", "/v1/completions", "/v1/chat/completions")
    wholes = [target.head(path, len(body)) + body for path, body in zip(paths, bodies, strict=True)]
    requests = [wholes[number % len(wholes)] for number in range(count)]
    return listed(await spread(target, requests, seconds, at_once=4, timeout_s=30.0))


async def huge_prompts(target: Target, count: int, seconds: float) -> str:
    """Texts that are tokenised before they are found too long."""
    texts = (" " * 1_000_000, "a" * 500_000, "<|im_end|>" * 50_000, "\n\u00e9" * 250_000, "x y " * 100_000)
    requests = []
    for number in range(count):
        text = texts[number % len(texts)]
        if number % 2:
            body: dict[str, object] = {"prompt": text, "max_tokens": 1}
            requests.append(target.request("/v1/completions", body))
        else:
            body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1}
            requests.append(target.request("/v1/chat/completions", body))
    return listed(await spread(target, requests, seconds, at_once=8, timeout_s=30.0))


async def aborts(target: Target, count: int, seconds: float) -> str:
    """Streams that are cut at a random moment."""
    rng = random.Random(5)
    body = {"prompt": "Once upon a time", "max_tokens": 200, "temperature": 0, "ignore_eos": True, "stream": True}
    data = target.request("/v1/completions", body)
    gate = asyncio.Semaphore(64)

    async def abort(number: int, after_s: float) -> str:
        await asyncio.sleep(seconds * number / count)
        async with gate:
            return await answered(target, data, after_s)

    return listed(Counter(await asyncio.gather(*(abort(number, rng.uniform(0.01, 2.0)) for number in range(count)))))


async def forgeries(target: Target, count: int, seconds: float) -> str:
    """Requests whose path, headers, body or framing try to write lines and escapes into the log."""
    line = FORGED_LINE.encode()
    heads = [
        b"GET /a\n" + line + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\x1b[2J" + line + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-Request-Id: a\rb\n" + line + b"\r\n\r\n",
        b"\x1b]0;" + line + b"\x07\r\n\r\n",
        target.head("/v1/completions", 2, "X-Request-Id: \x1b[31m" + FORGED_LINE) + b"{}",
    ]
    names = (f"x\n{FORGED_LINE}", f"x\r\n{FORGED_LINE}", f"x\u2028{FORGED_LINE}", f"\x1b[2J{FORGED_LINE}")
    heads += [target.request("/v1/completions", {"model": name, "prompt": "x", name: 1}) for name in names]
    heads += [
        target.request("/v1/load_lora_adapter", {"lora_name": name, "lora_path": f"/tmp/{name}"}) for name in names
    ]
    requests = [heads[number % len(heads)] for number in range(count)]
    return listed(await spread(target, requests, seconds, at_once=8, timeout_s=10.0))
