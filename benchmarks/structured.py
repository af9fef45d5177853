"""Answers with JSON schemas: are they valid, do they end, and what is the cost of the mask?

    python -m benchmarks.structured [--url URL] [--max-tokens 400] [--temperature 0] [--json FILE] [-- plugserve args]
    python -m benchmarks.structured --speed 12           # time per token with and without a mask, 8 streams, paired

The first asks for an answer to each of the 200 schemas of benchmarks/schemas.py, several at once, and checks every
answer that ended with `stop` with the jsonschema package (formats included). Exit code 0: all of those validate, and at
least 90 % ended with `stop`. Needs the package jsonschema[format].
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.schemas import Task, all_tasks
from tests.e2e.live_server import LiveServer

AT_ONCE = 8


@dataclass(slots=True)
class Answer:
    """The answer to one task. problem: why it is invalid, "" if it is valid or wasn't checked."""

    name: str
    finish_reason: str
    num_tokens: int
    text: str
    problem: str = ""


def problem_of(text: str, schema: dict[str, Any]) -> str:
    """Why text doesn't match schema, in one line; "" if it does."""
    import jsonschema

    try:
        instance = json.loads(text)
    except json.JSONDecodeError as error:
        return f"not JSON: {error}"
    kind = jsonschema.Draft202012Validator
    errors = list(kind(schema, format_checker=kind.FORMAT_CHECKER).iter_errors(instance))
    return errors[0].message[:200] if errors else ""


def body_of(task: Task, arguments: argparse.Namespace) -> dict[str, Any]:
    format = {"type": "json_schema", "json_schema": {"name": task.family, "schema": task.schema}}
    return {
        "messages": [{"role": "user", "content": f"Make up {task.topic}. Answer in JSON."}],
        "response_format": format,
        "max_tokens": arguments.max_tokens,
        "temperature": arguments.temperature,
        "seed": task.level,
    }


async def ask(http: httpx.AsyncClient, task: Task, arguments: argparse.Namespace) -> Answer:
    response = await http.post("/v1/chat/completions", json=body_of(task, arguments))
    body = response.json()
    if response.status_code != 200:
        return Answer(task.name, f"HTTP {response.status_code}", 0, "", body["error"]["message"])
    choice = body["choices"][0]
    answer = Answer(
        task.name, choice["finish_reason"], body["usage"]["completion_tokens"], choice["message"]["content"]
    )
    if answer.finish_reason == "stop":
        answer.problem = problem_of(answer.text, task.schema)
    return answer


async def ask_all(url: str, tasks: list[Task], arguments: argparse.Namespace) -> list[Answer]:
    """Answers in the order of tasks, AT_ONCE requests at a time."""
    gate = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(base_url=url, timeout=900) as http:

        async def one(task: Task) -> Answer:
            async with gate:
                answer = await ask(http, task, arguments)
            if arguments.verbose:
                print(
                    f"{answer.name} {answer.finish_reason} {answer.num_tokens} {answer.text[:200]!r} {answer.problem}"
                )
            return answer

        return await asyncio.gather(*(one(task) for task in tasks))


def report(answers: list[Answer]) -> bool:
    """Print one row per family; True if the exit code is 0."""
    families: dict[str, list[Answer]] = collections.defaultdict(list)
    for answer in answers:
        families[answer.name.rpartition("-")[0]].append(answer)
    print(f"{'family':<10} {'asked':>6} {'stop':>6} {'valid':>6} {'tokens p50':>11} {'max':>5}")
    for family, some in [*families.items(), ("all", answers)]:
        stopped = [answer for answer in some if answer.finish_reason == "stop"]
        valid = sum(not answer.problem for answer in stopped)
        tokens = [answer.num_tokens for answer in some]
        print(
            f"{family:<10} {len(some):>6} {len(stopped):>6} {valid:>6} {statistics.median(tokens):>11} {max(tokens):>5}"
        )
    for answer in answers:
        if answer.problem:
            print(f"{answer.name}: {answer.problem}: {answer.text[:300]}")
    stopped = [answer for answer in answers if answer.finish_reason == "stop"]
    return not any(answer.problem for answer in answers) and len(stopped) >= 0.9 * len(answers)


# ---------------------------------------------------------------- the cost of a mask

OPEN = {"type": "object", "properties": {"text": {"type": "array", "items": {"type": "string"}, "minItems": 100}}}


async def timed_batch(http: httpx.AsyncClient, num_tokens: int, *, is_bound: bool) -> float:
    """Seconds per step of 8 streams that generate num_tokens each, first tokens left out."""

    async def stream(seed: int) -> list[float]:
        body: dict[str, Any] = {
            "prompt": "Write a long list of words.",
            "max_tokens": num_tokens,
            "seed": seed,
            "temperature": 0.7,
            "stream": True,
            "ignore_eos": True,
        }
        if is_bound:
            body["structured_outputs"] = {"json": {**OPEN, "required": ["text"]}}
        times = []
        async with http.stream("POST", "/v1/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    times.append(time.perf_counter())
        return times

    all_times = await asyncio.gather(*(stream(seed) for seed in range(AT_ONCE)))
    start, end = max(times[0] for times in all_times), min(times[-1] for times in all_times)
    steps = max(sum(start <= moment <= end for moment in times) - 1 for times in all_times)
    return (end - start) / steps


async def compare_speed(url: str, num_pairs: int, num_tokens: int = 64) -> bool:
    """Alternate with and without a mask; True if the median of the pairs' ratios is within 10 %."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as http:
        for is_bound in (True, False):
            await timed_batch(http, 16, is_bound=is_bound)  # compiles the grammar, warms up
        ratios, free, bound = [], [], []
        for pair in range(num_pairs):
            seconds = {}
            for is_bound in (True, False) if pair % 2 else (False, True):
                seconds[is_bound] = await timed_batch(http, num_tokens, is_bound=is_bound)
            ratios.append(seconds[True] / seconds[False])
            free.append(seconds[False])
            bound.append(seconds[True])
    ratio = statistics.median(ratios)
    free_ms, bound_ms = 1000 * statistics.median(free), 1000 * statistics.median(bound)
    low, _, high = statistics.quantiles(ratios, n=4)
    print(f"{AT_ONCE} streams, {num_pairs} pairs of {num_tokens} tokens: a token takes {free_ms:.1f} ms free and")
    print(f"{bound_ms:.1f} ms bound; median of the pairs' ratios {ratio:.3f}, quartiles {low:.3f} and {high:.3f}")
    return ratio <= 1.10


@contextlib.contextmanager
def server_of(arguments: argparse.Namespace) -> Iterator[str]:
    if arguments.url:
        yield arguments.url
        return
    with LiveServer("--max-num-seqs", "32", *arguments.server) as live:
        yield live.url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="a running server")
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--only", default="", help="a family, or a task's name")
    parser.add_argument("--speed", type=int, metavar="PAIRS", help="measure the cost of a mask instead")
    parser.add_argument("--json", type=Path, help="file for all answers")
    parser.add_argument("--verbose", action="store_true", help="print answers as they come")
    parser.add_argument("server", nargs="*", help="further arguments of plugserve, after --")
    arguments = parser.parse_args()
    with server_of(arguments) as url:
        if arguments.speed:
            sys.exit(0 if asyncio.run(compare_speed(url, arguments.speed)) else 1)
        tasks = [task for task in all_tasks() if arguments.only in (task.family, task.name, "")]
        answers = asyncio.run(ask_all(url, tasks, arguments))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(answer) for answer in answers], indent=1))
    sys.exit(0 if report(answers) else 1)


if __name__ == "__main__":
    main()
