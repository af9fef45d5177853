"""Attack a server for some minutes while a bystander streams with another key: do other clients notice?

    python -m benchmarks.attack [--seconds 300] [--only NAME ...] [--prompts 4] [--json FILE] [-- plugserve arguments]

Starts plugserve with the embedded model, two keys and a scheduler that hangs on command. Floods come first: stalled
sockets, hostile grammars, large bodies, huge prompts, aborts, log forgeries; then faults: a hung scheduler, a stopped
engine, kills of engine and worker. Exit code 0: the bystander's text is exact throughout, its longest gap between two
chunks during floods is under a second, /health is true within 5 s of each fault and well again after it, no log line is
forged, and at the end all blocks are free and processes, file descriptors, threads and memory (within 5 %) no more than
before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import psutil

from benchmarks.bystander import PROMPTS, Stream, stream
from benchmarks.floods import (
    FORGED_LINE,
    Flood,
    Target,
    aborts,
    forgeries,
    hostile_grammars,
    huge_prompts,
    large_bodies,
    stalled_sockets,
)
from tests.e2e.live_server import LiveServer

FLOODS: dict[str, tuple[Flood, int]] = {
    "stalled sockets": (stalled_sockets, 1000),
    "hostile grammars": (hostile_grammars, 200),
    "large bodies": (large_bodies, 50),
    "huge prompts": (huge_prompts, 100),
    "aborts": (aborts, 500),
    "log forgeries": (forgeries, 200),
}
FAULTS = ("hung scheduler", "stopped engine", "killed engine", "killed worker")
ATTACKER, BYSTANDER = "key-of-the-attacker", "key-of-the-bystander"
FULL_S = 300.0
TRUTH_S = 5.0
GAP_S = 1.0
HANG_TIMEOUT_S = 8
MEMORY_SHARE = 0.05
_ROOT = Path(__file__).parents[1]


@dataclass(slots=True)
class Row:
    """One line of the table. seconds: how long the flood ran, or until /health said the truth."""

    name: str
    seen: str
    seconds: float
    is_ok: bool


@dataclass(slots=True)
class Resources:
    """What a server holds."""

    free_blocks: float
    processes: int
    file_descriptors: int
    threads: int
    memory_mib: float


@dataclass(slots=True)
class HealthWatch:
    """Asks /health four times a second, in a thread. seen: when, the status (0: no answer), and how long it took."""

    url: str
    seen: list[tuple[float, int, float]] = field(default_factory=list)
    _is_over: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        threading.Thread(target=self._watch, daemon=True).start()

    def stop(self) -> None:
        self._is_over.set()

    def _watch(self) -> None:
        while not self._is_over.wait(0.25):
            asked_s = time.monotonic()
            try:
                status = httpx.get(f"{self.url}/health", timeout=TRUTH_S).status_code
            except httpx.HTTPError:
                status = 0
            self.seen.append((asked_s, status, time.monotonic() - asked_s))

    def since(self, start_s: float) -> list[tuple[float, int, float]]:
        return [entry for entry in list(self.seen) if entry[0] >= start_s]

    def wait_for(self, start_s: float, claim: Callable[[int], bool], timeout_s: float) -> float | None:
        """Seconds from start_s until a status for which claim holds was answered; None after timeout_s."""
        while time.monotonic() - start_s < timeout_s:
            for asked_s, status, took_s in self.since(start_s):
                if claim(status):
                    return asked_s + took_s - start_s
            time.sleep(0.05)
        return None


class Attack:
    """One run against one server."""

    def __init__(self, live: LiveServer, seconds: float, hang_file: Path, num_prompts: int = len(PROMPTS)) -> None:
        self.live = live
        self.target = Target(live.url, ATTACKER)
        self.rows: list[Row] = []
        self.prompts = PROMPTS[:num_prompts]
        self._scale = seconds / FULL_S
        self._flood_s = seconds * 0.1
        self._hang_file = hang_file
        self._watch = HealthWatch(live.url)
        self._watch.start()
        self._fault_times: list[tuple[float, float]] = []
        self._flood_times: list[tuple[float, float]] = []
        self._floods_run: list[str] = []

    # ---- floods

    def rehearse(self, names: list[str]) -> None:
        """A little of each flood among names, so that what is made on first use exists before anything is measured."""
        for name in names:
            if name in FLOODS:
                asyncio.run(FLOODS[name][0](self.target, 8, min(1.0, self._flood_s)))
        for prompt in self.prompts:
            stream(self.live.url, BYSTANDER, prompt)

    def flood(self, name: str) -> None:
        flood, count = FLOODS[name]
        count = max(8, round(count * self._scale))
        start_s = time.monotonic()
        seen = asyncio.run(flood(self.target, count, self._flood_s))
        took_s = time.monotonic() - start_s
        self._flood_times.append((start_s, time.monotonic()))
        self._floods_run.append(name)
        probes = self._watch.since(start_s)
        bad = [status for _, status, _ in probes if status != 200]
        slowest_s = max((took for _, _, took in probes), default=0.0)
        health = f"/health {'200' if not bad else f'was {sorted(set(bad))}'}, slowest {slowest_s:.2f} s"
        is_ok = not bad and slowest_s < TRUTH_S and not (name == "log forgeries" and self._is_forged())
        self.rows.append(Row(f"{name} x {count}", f"{seen}; {health}", took_s, is_ok))

    def _is_forged(self) -> bool:
        time.sleep(0.5)
        return any(line.startswith(FORGED_LINE) or "\x1b" in line for line in self.live.lines)

    # ---- faults

    def fault(self, name: str) -> None:
        """Cause it, see what /health says, and wait until the server is well again."""
        process = self.live.worker if name == "killed worker" else self.live.engine
        start_s = time.monotonic()
        match name:
            case "hung scheduler":
                self._hang_file.touch()
            case "stopped engine":
                process.send_signal(signal.SIGSTOP)
            case _:
                process.kill()
        true_s = self._watch.wait_for(start_s, lambda status: status != 200, TRUTH_S + 10)
        well_s = self._back_to_health(process, start_s)
        self._fault_times.append((start_s, time.monotonic()))
        said = "never said" if true_s is None else f"/health not 200 after {true_s:.1f} s"
        if name == "killed worker" and true_s is None and well_s is not None:
            said, true_s = "replaced between two probes", well_s
        again = "not well again" if well_s is None else f"well again after {well_s:.1f} s"
        is_ok = true_s is not None and true_s <= TRUTH_S and well_s is not None
        self.rows.append(Row(name, f"{said}, {again}", true_s if true_s is not None else -1.0, is_ok))
        if process.is_running() and process.status() == psutil.STATUS_STOPPED:
            process.send_signal(signal.SIGCONT)

    def _back_to_health(self, process: psutil.Process, start_s: float) -> float | None:
        """Seconds from start_s until process is replaced and an answer comes; None after two minutes."""
        while time.monotonic() - start_s < 120:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                probed = self._watch.since(time.monotonic() - 0.6)
                answer = stream(self.live.url, BYSTANDER, PROMPTS[0], timeout_s=10)
                if not answer.error and any(status == 200 for _, status, _ in probed):
                    return time.monotonic() - start_s
            time.sleep(0.2)
        return None

    # ---- the end

    def resources(self) -> Resources:
        """Once nothing runs and the sandboxes have nothing to do."""
        deadline_s = time.monotonic() + 20
        while time.monotonic() < deadline_s:
            if not self.live.metric("num_requests_running") and not self.live.metric("num_requests_waiting"):
                break
            time.sleep(0.2)
        time.sleep(2)
        tree = [psutil.Process(self.live.process.pid), *self.live.children()]
        return Resources(
            self.live.metric("kv_blocks_free"),
            len(tree),
            sum(process.num_fds() for process in tree),
            sum(process.num_threads() for process in tree),
            sum(process.memory_full_info().uss for process in tree) / 2**20,
        )

    def compare(self, before: Resources, after: Resources) -> None:
        for name, old in asdict(before).items():
            new = getattr(after, name)
            match name:
                case "memory_mib":
                    is_ok = new - old <= MEMORY_SHARE * old
                case "free_blocks":
                    is_ok = new == old
                case _:
                    is_ok = new <= old
            self.rows.append(Row(name.replace("_", " "), f"{old:.0f} before, {new:.0f} after", 0.0, is_ok))

    def judge(self, streams: list[Stream], texts: dict[str, str]) -> None:
        """The bystander's streams: exact where whole; cut only by a fault of the engine or the worker."""

        def is_during(times: list[tuple[float, float]], seen: Stream) -> bool:
            return any(seen.began_s < end and seen.ended_s > start for start, end in times)

        wrong = [seen for seen in streams if not texts[seen.prompt].startswith(seen.text)]
        wrong += [seen for seen in streams if not seen.error and seen.text != texts[seen.prompt]]
        cut = [seen for seen in streams if seen.error and not is_during(self._fault_times, seen)]
        flooded = [
            seen for seen in streams if is_during(self._flood_times, seen) and not is_during(self._fault_times, seen)
        ]
        worst = max(flooded, key=lambda seen: seen.longest_gap_s, default=None)
        gap = 0.0 if worst is None else worst.longest_gap_s
        first = max((seen.first_chunk_s for seen in flooded), default=0.0)
        whole = sum(not seen.error for seen in streams)
        texts_seen = f"{whole} whole answers, {len(wrong)} wrong, {len(cut)} cut without a fault"
        self.rows.append(Row("bystander's text", texts_seen, 0.0, whole > 0 and not wrong and not cut))
        seen_gap = f"longest gap {gap:.2f} s ({self._flood_at(worst)}), longest wait for a first chunk {first:.2f} s"
        self.rows.append(Row("bystander's gaps during floods", seen_gap, gap, bool(flooded) and gap < GAP_S))
        self._watch.stop()

    def _flood_at(self, seen: Stream | None) -> str:
        """The flood during which seen had its longest gap."""
        at_s = 0.0 if seen is None else seen.gap_at_s
        times = zip(self._floods_run, self._flood_times, strict=False)
        return next((name for name, (start, end) in times if start <= at_s <= end + 1), "between floods")


def run(live: LiveServer, seconds: float, names: list[str], hang_file: Path, num_prompts: int) -> list[Row]:
    attack = Attack(live, seconds, hang_file, num_prompts)
    texts = {prompt: stream(live.url, BYSTANDER, prompt).text for prompt in attack.prompts}
    attack.rehearse(names)
    before = attack.resources()
    command = [sys.executable, "-m", "benchmarks.bystander", live.url, BYSTANDER, "100000", str(num_prompts)]
    with tempfile.TemporaryFile("w+") as output:
        bystander = subprocess.Popen(command, stdout=output, cwd=_ROOT)
        try:
            for name in names:
                (attack.flood if name in FLOODS else attack.fault)(name)
        finally:
            bystander.terminate()
            bystander.wait()
        output.seek(0)
        streams = [Stream(**json.loads(line)) for line in output if line.endswith("\n")]
    attack.rehearse(names)
    attack.compare(before, attack.resources())
    attack.judge(streams, texts)
    return attack.rows


def print_table(rows: list[Row]) -> None:
    width = max(len(row.name) for row in rows)
    print(f"{'':4} {'fault':{width}} {'seconds':>8}  seen")
    for row in rows:
        print(f"{'ok' if row.is_ok else 'FAIL':4} {row.name:{width}} {row.seconds:8.1f}  {row.seen}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=FULL_S, help="about how long, faults and floods together")
    parser.add_argument("--only", nargs="+", choices=[*FLOODS, *FAULTS], default=[*FLOODS, *FAULTS])
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="of the bystander")
    parser.add_argument("--json", type=Path, help="also write the table there")
    parser.add_argument("arguments", nargs="*", help="of plugserve, after --")
    asked = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as folder:
        hang_file = Path(folder) / "hang"
        options = ["--api-key", ATTACKER, "--api-key", BYSTANDER, "--metrics-no-auth", "--max-num-seqs", "16"]
        options += ["--plugin", str(_ROOT / "benchmarks" / "hanging_scheduler.py"), "--scheduler", "hangs-on-command"]
        options += ["--engine-hang-timeout", str(HANG_TIMEOUT_S), *asked.arguments]
        with LiveServer(*options, env={"HANG_FILE": str(hang_file), **os.environ}) as live:
            rows = run(live, asked.seconds, asked.only, hang_file, asked.prompts)
    print_table(rows)
    if asked.json:
        asked.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 0 if all(row.is_ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
