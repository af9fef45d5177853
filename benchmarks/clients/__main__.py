"""Runs public client suites against a live plugserve and prints one table of their cases.

    python -m benchmarks.clients [SUITE ...] [--work FOLDER] [--json FILE] [--engine model|scripted|both] [--url URL]

Each suite is installed into an environment of its own below --work on first use (pip and npm reach their registries).
It runs twice: with the embedded model, and with a runner that answers from script.json (scripted.py), which also does
what a small model does badly (such as calling tools by itself), so that a failure is the server's. Exit code 0: every
case passed on at least one of the two, or was skipped by the suite itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from benchmarks.clients.suites import SUITES, Case, Suite, Target
from tests.e2e.live_server import LiveServer

HERE = Path(__file__).parent
ENGINES = ("model", "scripted")
DEFAULT_WORK = Path.home() / ".cache" / "plugserve-clients"


def server_args(engine: str, suite: Suite) -> list[str]:
    args = ["--enable-auto-tool-choice", *suite.server_args]
    if engine == "scripted":
        args += ["--plugin", str(HERE / "scripted.py"), "--runner", "scripted"]
        args += ["--scripted.script", str(HERE / "script.json"), "--tool-call-parser", "hermes"]
    return args


@contextmanager
def target_of(engine: str, suite: Suite, url: str | None) -> Iterator[Target]:
    """A server for suite; url is that of a running one."""
    if url is not None:
        yield Target(url, "HuggingFaceTB/SmolLM2-135M-Instruct")
        return
    with LiveServer(*server_args(engine, suite)) as live:
        yield Target(live.url, live.get("/v1/models").json()["data"][0]["id"])


def run_suite(suite: Suite, engine: str, work: Path, url: str | None) -> list[Case]:
    folder = suite.install(work)
    with target_of(engine, suite, url) as target:
        cases = suite.run(folder, target)
    failed = sum(case.status == "failed" for case in cases)
    print(f"{suite.name} on {engine}: {len(cases) - failed} of {len(cases)} without failure", file=sys.stderr)
    return cases


def print_table(results: dict[str, list[Case]]) -> bool:
    """Print one row per case with its status on each engine; True if each case passed on one of them or was skipped."""
    rows: dict[tuple[str, str], dict[str, Case]] = {}
    for engine, cases in results.items():
        for case in cases:
            rows.setdefault((case.suite, case.name), {})[engine] = case
    engines = list(results)
    print("| suite | case | " + " | ".join(engines) + " | detail |")
    print("|---|---|" + "---|" * (len(engines) + 1))
    is_good = True
    for (suite, name), by_engine in rows.items():
        statuses = [by_engine[engine].status if engine in by_engine else "-" for engine in engines]
        is_good &= bool({"passed", "skipped"} & set(statuses))
        detail = next((case.detail for case in by_engine.values() if case.status == "failed"), "").replace("|", "\\|")
        print(f"| {suite} | {name} | {' | '.join(statuses)} | {detail[:160]} |")
    for suite, summary in summaries(rows.values()).items():
        print(f"{suite}: {summary}")
    return is_good


def summaries(rows: Iterable[dict[str, Case]]) -> dict[str, str]:
    """By suite: how many cases passed on each engine."""
    counts: dict[str, dict[str, list[int]]] = {}
    for row in rows:
        for engine, case in row.items():
            passed = counts.setdefault(case.suite, {}).setdefault(engine, [0, 0, 0])
            passed[("passed", "failed", "skipped").index(case.status)] += 1
    return {
        suite: ", ".join(f"{engine} {p} passed {f} failed {s} skipped" for engine, (p, f, s) in by_engine.items())
        for suite, by_engine in counts.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument("--engine", choices=[*ENGINES, "both"], default="both")
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="folder in which the suites are installed")
    parser.add_argument("--url", help="a running server, instead of one started for each suite")
    parser.add_argument("--json", type=Path, help="file for all cases")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.suites if name not in SUITES]
    if unknown:
        parser.error(f"no suite {unknown[0]!r}; there are {', '.join(SUITES)}")
    suites = [SUITES[name] for name in arguments.suites or SUITES]
    engines = ENGINES if arguments.engine == "both" else (arguments.engine,)
    results: dict[str, list[Case]] = {engine: [] for engine in engines}
    for suite in suites:
        for engine in engines:
            if engine == "model" or not suite.needs_model:
                results[engine] += run_suite(suite, engine, arguments.work, arguments.url)
    is_good = print_table(results)
    if arguments.json:
        figures = {engine: [asdict(case) for case in cases] for engine, cases in results.items()}
        arguments.json.write_text(json.dumps(figures, indent=1))
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()
