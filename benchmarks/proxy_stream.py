"""Does Nginx hold back a stream? Two streams of a minute from one server, directly and through Nginx over HTTPS.

    python -m benchmarks.proxy_stream [--seconds 60]

The server and Nginx run as deploy/docker-compose.yml says (without containers; needs root and Debian's nginx). Both
streams are rows of the same batch, so each step of the engine gives a token to both, and a step's two chunks leave the
server at the same time. Printed: the gaps between chunks of each stream, and by how much those of the same step differ.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.deploy.compose_run import ComposeRun, read_variables

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
KEY = "client-key"
LIMIT_MS = 20.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--as-client", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_client:
        print(json.dumps(asyncio.run(_both(options.seconds))))
        return 0
    direct, proxied = _measured(options.seconds)
    return _print(direct, proxied)


def _measured(seconds: float) -> tuple[list[float], list[float]]:
    """The arrival times of both streams' chunks."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        deploy = folder / "deploy"
        shutil.copytree(DEPLOY, deploy, ignore=shutil.ignore_patterns(".env", "tls"))
        subprocess.run(["sh", str(deploy / "new-env.sh")], check=True, stdout=subprocess.DEVNULL)
        variables = read_variables(deploy / ".env") | {"API_KEYS": KEY}
        run = ComposeRun(deploy / "docker-compose.yml", variables, folder)
        try:
            run.start("plugserve")
            run.start("nginx")
            command = run.inside(
                sys.executable, "-m", "benchmarks.proxy_stream", "--as-client", "--seconds", str(seconds)
            )
            direct, proxied = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        finally:
            run.stop()
    return direct, proxied


async def _both(seconds: float) -> list[list[float]]:
    end = time.monotonic() + seconds
    return list(await asyncio.gather(*(_stream(url, end) for url in ("http://127.0.0.1:8000", "https://127.0.0.1"))))


async def _stream(url: str, end: float) -> list[float]:
    import httpx

    fields = {"messages": [{"role": "user", "content": "Tell a long story."}], "stream": True, "temperature": 0}
    times = []
    async with (
        httpx.AsyncClient(verify=False, timeout=60, headers={"Authorization": f"Bearer {KEY}"}) as client,
        client.stream(
            "POST", f"{url}/v1/chat/completions", json=fields | {"max_tokens": 8000, "ignore_eos": True}
        ) as answer,
    ):
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                times.append(time.monotonic())
            if time.monotonic() > end:
                break
    return times


def _print(direct: list[float], proxied: list[float]) -> int:
    """Exit code 0 if 99 of 100 gaps differ by less than LIMIT_MS."""
    steps = _same_steps(direct, proxied)
    gaps = [[1e3 * (b[side] - a[side]) for a, b in itertools.pairwise(steps)] for side in (0, 1)]
    differences = sorted(abs(a - b) for a, b in zip(*gaps, strict=True))
    for name, values in (("direct", gaps[0]), ("through Nginx", gaps[1]), ("difference of a step", differences)):
        ranked = sorted(values)
        print(
            f"{name:>20}: {len(values)} gaps, p50 {statistics.median(ranked):7.2f} ms, "
            f"p99 {ranked[int(0.99 * len(ranked))]:7.2f} ms, longest {ranked[-1]:7.2f} ms"
        )
    return 0 if differences[int(0.99 * len(differences))] < LIMIT_MS else 1


def _same_steps(direct: list[float], proxied: list[float]) -> list[tuple[float, float]]:
    """The arrival times of the chunks that left in the same step: one stream may be some steps ahead."""

    def pairs(ahead: int) -> list[tuple[float, float]]:
        first, second = direct[max(0, ahead) :], proxied[max(0, -ahead) :]
        return list(zip(first, second, strict=False))

    return min(
        (pairs(ahead) for ahead in range(-20, 21)), key=lambda one: statistics.median(abs(a - b) for a, b in one)
    )


if __name__ == "__main__":
    sys.exit(main())
