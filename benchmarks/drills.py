"""Drills of a server's operation, each with a server of its own, and a table of what was seen.

    python -m benchmarks.drills [--only NAME ...] [--soak-seconds 600] [--json FILE]

stop: SIGTERM while 30 streams run; they end whole, and new requests get 503.
queue: more requests than fit and may wait; those beyond get 503 with Retry-After, the others are answered.
readers: 4 clients beside 20 that read slowly, and beside 20 that don't: text and gaps of the 4, and memory.
certificate: a server with an expired certificate gets a new one by SIGHUP while a stream runs.
soak: mixed requests for ten minutes; the memory of all processes after the first minute and at the end.
recorder: the engine is killed while requests run; the flight recorder's file is kept and replays.

Exit code 0: every drill passed. The embedded model on this machine's processor.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import re
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGTERM
from typing import Any

import httpx
import psutil

from tests.e2e.live_server import LiveServer

NUM_STREAMS = 30
SLOW_READERS = 20
FLAT_SHARE = 0.03
SOAK_S = 600.0
_TEXT = "Write a long story about a lighthouse, its keeper, and the sea."


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    drill: str
    seen: str
    is_ok: bool


def body(num_tokens: int, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": _TEXT}]
    return {"messages": messages, "max_tokens": num_tokens, "ignore_eos": True, "temperature": 0, **fields}


@dataclass(slots=True)
class Streamed:
    """A streamed answer: its status, whether it ended whole, its text, and the time of each chunk."""

    status: int = 0
    is_whole: bool = False
    text: str = ""
    times: list[float] | None = None

    @property
    def longest_gap_s(self) -> float:
        times = self.times or []
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)


async def stream(
    client: httpx.AsyncClient, num_tokens: int, started: asyncio.Event | None = None, pause_s: float = 0.0
) -> Streamed:
    """One streamed chat. started is set at the first chunk; pause_s passes after each chunk."""
    seen = Streamed(times=[])
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body(num_tokens, stream=True)) as answer:
            seen.status = answer.status_code
            async for line in answer.aiter_lines():
                if not line.startswith("data: "):
                    continue
                assert seen.times is not None
                seen.times.append(time.perf_counter())
                if line == "data: [DONE]":
                    seen.is_whole = '"finish_reason"' in seen.text or bool(seen.text)
                    break
                for choice in json.loads(line[6:]).get("choices", ()):  # none in an error
                    seen.text += choice["delta"].get("content") or ""
                if started is not None:
                    started.set()
                if pause_s:
                    await asyncio.sleep(pause_s)
    except httpx.HTTPError as error:
        seen.text += f" [{type(error).__name__}]"
    return seen


def client_of(live: LiveServer, **options: Any) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=live.url, timeout=300, limits=limits, **options)


# ---- drills


async def stop(options: argparse.Namespace) -> Row:
    with LiveServer("--shutdown-timeout", "120") as live:
        async with client_of(live) as client:
            started = [asyncio.Event() for _ in range(NUM_STREAMS)]
            running = [asyncio.create_task(stream(client, 48, event)) for event in started]
            await asyncio.gather(*(event.wait() for event in started))
            begun = time.perf_counter()
            live.process.send_signal(SIGTERM)
            await asyncio.sleep(0.2)
            late = await status_of_new_request(live)
            ended = await asyncio.gather(*running)
            took = time.perf_counter() - begun
        code = await asyncio.to_thread(live.process.wait, 60)
    whole = sum(one.is_whole for one in ended)
    seen = f"{whole} of {NUM_STREAMS} streams ended whole in {took:.1f} s, a new request got {late}, exit code {code}"
    return Row("stop", seen, whole == NUM_STREAMS and late == "503" and code == 0)


async def status_of_new_request(live: LiveServer) -> str:
    try:
        async with client_of(live) as client:
            return str((await client.post("/v1/chat/completions", json=body(4))).status_code)
    except httpx.HTTPError as error:
        return type(error).__name__


async def queue(options: argparse.Namespace) -> Row:
    with LiveServer("--max-num-seqs", "4", "--max-num-queued-requests", "8") as live:
        async with client_of(live) as client:
            answers = await asyncio.gather(
                *(client.post("/v1/chat/completions", json=body(24)) for _ in range(40)), return_exceptions=True
            )
            codes = [one.status_code if isinstance(one, httpx.Response) else type(one).__name__ for one in answers]
            refused = [one for one in answers if isinstance(one, httpx.Response) and one.status_code == 503]
            has_retry = all("retry-after" in one.headers for one in refused)
            after = (await client.post("/v1/chat/completions", json=body(4))).status_code
    good, full = codes.count(200), codes.count(503)
    retry = "all with Retry-After" if has_retry else "NOT all with Retry-After"
    seen = f"of 40 requests {good} answered, {full} got 503 ({retry}); then {after}"
    return Row("queue", seen, good >= 12 and good + full == 40 and has_retry and after == 200)


async def readers(options: argparse.Namespace) -> Row:
    """The same load twice: 20 of 24 clients read at once, then slowly."""

    async def beside(client: httpx.AsyncClient, pause_s: float) -> list[Streamed]:
        others = [asyncio.create_task(stream(client, 200, pause_s=pause_s)) for _ in range(SLOW_READERS)]
        await asyncio.sleep(1.0)
        seen = await asyncio.gather(*(stream(client, 48) for _ in range(4)))
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        return seen

    with LiveServer() as live:
        async with client_of(live) as client:
            quick = await beside(client, 0.0)
            before = resident(live)
            slow = await beside(client, 1.0)
            after = resident(live)
    same = all(one.is_whole and one.text == quick[0].text for one in [*quick, *slow])
    gaps = max(one.longest_gap_s for one in quick), max(one.longest_gap_s for one in slow)
    seen = (
        f"4 clients beside {SLOW_READERS} slow ones: {'the same text' if same else 'OTHER TEXT'}, longest gap "
        f"{1e3 * gaps[1]:.0f} ms (beside quick ones {1e3 * gaps[0]:.0f} ms), memory {(after - before) / 2**20:+.0f} MiB"
    )
    return Row("readers", seen, same and after - before < 64 << 20)


def make_certificate(folder: Path, name: str, first: str, last: str) -> None:
    """Write server.crt and server.key into folder, valid between two dates (YYYYMMDDHHMMSSZ)."""
    (folder / "ca.cnf").write_text(
        f"[ca]\ndefault_ca=own\n[own]\ndatabase={folder}/index\nserial={folder}/serial\nnew_certs_dir={folder}\n"
        "default_md=sha256\npolicy=any\nunique_subject=no\n[any]\ncommonName=supplied\n"
    )
    (folder / "index").write_text("")
    (folder / "serial").write_text(f"{random.randrange(1 << 30):08x}\n")
    commands = [
        ["req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", folder / "new.key", "-out",
         folder / "new.csr"],
        ["ca", "-batch", "-selfsign", "-config", folder / "ca.cnf", "-keyfile", folder / "new.key", "-in",
         folder / "new.csr", "-out", folder / "new.crt", "-startdate", first, "-enddate", last, "-notext"],
    ]  # fmt: skip
    for command in commands:
        subprocess.run(["openssl", *map(str, command)], check=True, capture_output=True)
    for kind in ("key", "crt"):
        (folder / f"new.{kind}").replace(folder / f"server.{kind}")


def served_name(live: LiveServer) -> str:
    """The common name and the last day of the certificate that the server shows now."""
    port = int(live.url.rsplit(":", 1)[1])
    pem = ssl.get_server_certificate(("127.0.0.1", port))
    text = subprocess.run(
        ["openssl", "x509", "-noout", "-subject", "-enddate"], input=pem, capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"CN ?= ?(\S+)\s+notAfter=(.*)", text)
    assert found is not None, text
    return f"{found[1]} (until {found[2].strip()})"


async def certificate(options: argparse.Namespace) -> Row:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_certificate(folder, "expired", "20200101000000Z", "20200201000000Z")
        arguments = ("--ssl-certfile", folder / "server.crt", "--ssl-keyfile", folder / "server.key")
        with LiveServer(*arguments) as live:
            async with client_of(live, verify=False) as client:
                before = await asyncio.to_thread(served_name, live)
                started = asyncio.Event()
                running = asyncio.create_task(stream(client, 64, started))
                await started.wait()
                make_certificate(folder, "renewed", "20250101000000Z", "20450101000000Z")
                live.process.send_signal(SIGHUP)
                after = before
                for _ in range(50):
                    after = await asyncio.to_thread(served_name, live)
                    if after != before:
                        break
                    await asyncio.sleep(0.1)
                ended = await running
                async with client_of(live, verify=False) as fresh:
                    new = (await fresh.post("/v1/chat/completions", json=body(4))).status_code
    how = "ended whole" if ended.is_whole else "BROKE"
    seen = f"{before} became {after}; the running stream {how}, a new request got {new}"
    return Row("certificate", seen, after.startswith("renewed") and ended.is_whole and new == 200)


def resident(live: LiveServer) -> int:
    """Bytes of all of the server's processes."""
    return sum(one.memory_info().rss for one in [psutil.Process(live.process.pid), *live.children()])


async def soak(options: argparse.Namespace) -> Row:
    """Clients of mixed kinds, among them ones that leave early and ones that send nonsense."""
    draws = random.Random(1)
    counts = {"whole": 0, "left": 0, "refused": 0, "other": 0}

    async def one(client: httpx.AsyncClient) -> None:
        kind = draws.random()
        if kind < 0.6:
            ended = await stream(client, draws.randint(4, 48))
            counts["whole" if ended.is_whole else "other"] += 1
        elif kind < 0.8:
            task = asyncio.create_task(stream(client, 200))
            await asyncio.sleep(draws.uniform(0.05, 1.0))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            counts["left"] += 1
        else:
            answer = await client.post("/v1/chat/completions", json=body(4, temperature=-draws.random() - 0.1))
            counts["refused" if answer.status_code == 400 else "other"] += 1

    async def work(client: httpx.AsyncClient, end: float) -> None:
        while time.monotonic() < end:
            await one(client)

    seconds = options.soak_seconds
    warm = min(60.0, seconds / 4)
    with LiveServer("--enable-prefix-caching") as live:
        async with client_of(live) as client:
            await asyncio.gather(*(work(client, time.monotonic() + warm) for _ in range(8)))
            first = resident(live)
            await asyncio.gather(*(work(client, time.monotonic() + seconds - warm) for _ in range(8)))
            await asyncio.sleep(1.0)
            last = resident(live)
            text = (await client.get("/metrics")).text
    running = sum(float(one) for one in re.findall(r"^plugserve_num_requests_running\S* (\S+)$", text, re.MULTILINE))
    growth = last / first - 1
    seen = (
        f"{seconds:.0f} s: {counts['whole']} answers, {counts['left']} clients left, {counts['refused']} refused, "
        f"{counts['other']} other; memory {first / 2**20:.0f} -> {last / 2**20:.0f} MiB ({100 * growth:+.1f} %), "
        f"{running:.0f} running at the end"
    )
    return Row("soak", seen, growth < FLAT_SHARE and counts["other"] == 0 and running == 0)


async def recorder(options: argparse.Namespace) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        with LiveServer("--flight-recorder-dir", folder) as live:
            async with client_of(live) as client:
                for _ in range(3):
                    await stream(client, 16)
                started = [asyncio.Event() for _ in range(4)]
                running = [asyncio.create_task(stream(client, 400, event)) for event in started]
                await asyncio.gather(*(event.wait() for event in started))
                live.engine.send_signal(SIGKILL)
                await asyncio.gather(*running)
                again = 0
                for _ in range(200):
                    answer = await client.post("/v1/chat/completions", json=body(4))
                    again = answer.status_code
                    if again == 200:
                        break
                    await asyncio.sleep(0.2)
        files = sorted(Path(folder).rglob("*"), key=lambda one: one.stat().st_mtime)
        files = [one for one in files if one.is_file()]
        if not files:
            return Row("recorder", f"no file was kept; the engine came back: {again == 200}", False)
        command = [sys.executable, "-m", "plugserve", "replay", str(files[0])]
        replayed = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    last = (replayed.stdout.strip().splitlines() or ["nothing"])[-1]
    seen = f"kept {files[0].name}, replay: exit code {replayed.returncode}, {last}"
    return Row("recorder", seen, replayed.returncode == 0 and again == 200)


DRILLS: dict[str, Callable[[argparse.Namespace], Awaitable[Row]]] = {
    "stop": stop, "queue": queue, "readers": readers, "certificate": certificate, "recorder": recorder, "soak": soak,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(DRILLS)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--soak-seconds", type=float, default=SOAK_S)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for name in options.only:
        row = asyncio.run(DRILLS[name](options))
        rows.append(row)
        print(f"| {row.drill} | {row.seen} | {'ok' if row.is_ok else 'FAILED'} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))
    return 0 if all(row.is_ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
