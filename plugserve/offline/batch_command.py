"""`plugserve batch`: a file of requests, answered by a model in this process or by a server."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from plugserve.core.errors import ConfigError, EngineUnavailableError
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.key_file import all_keys
from plugserve.core.settings.settings import Settings
from plugserve.offline.http_answers import HttpAnswers
from plugserve.offline.local_server import LocalServer
from plugserve.server.batches.local_answers import LocalAnswers
from plugserve.server.batches.results import ResultsFile
from plugserve.server.batches.run import Answer, Contents, Counts, Done, Reading, run_lines, survey
from plugserve.server.supervisor.main import start_table

_OVER_HTTP: Final = 32
_LEAST_LOCAL: Final = 64
_INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True)
class BatchFiles:
    """concurrency None: as many requests at a time as suit the engine."""

    source: Path
    target: Path
    url: str | None = None
    concurrency: int | None = None


def run_batch(files: BatchFiles, settings: Settings, host: PluginHost) -> int:
    """Answer all lines of files.source that files.target has no result for. Returns the exit code: 0 when every line
    has its result, 1 when the engine or the server is gone, 130 after an interrupt. Raises UserError."""
    if files.target.resolve() == files.source.resolve():
        raise ConfigError(f"the results of {files.source} can't replace it; name another file")
    reading = Reading(files.source, settings.max_body_size)
    contents = survey(reading)
    results = ResultsFile(files.target)
    try:
        done = Done(contents)
        results.keep(done.keep)
        if done.num_changed:
            lines = "line has changed and is" if done.num_changed == 1 else "lines have changed and are"
            print(f"{done.num_changed} answered {lines} answered anew", file=sys.stderr)
        num_left = contents.num_lines - len(done.ids)
        if not num_left:
            print(_summary(contents, done, Counts(), 0.0), file=sys.stderr)
            return 0
        run = partial(_run, reading, contents, done, results)
        if files.url:
            _over_http(files, settings, run)
        else:
            _in_process(files, settings, host, run)
    except EngineUnavailableError as error:
        print(f"plugserve: error: {error} The same command goes on from here.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return _INTERRUPTED
    finally:
        results.close()
    return 0


Run = Callable[[Answer, int], Coroutine[Any, Any, None]]


def _over_http(files: BatchFiles, settings: Settings, run: Run) -> None:
    keys = all_keys(settings.api_key, settings.api_key_file)
    concurrency = files.concurrency or _OVER_HTTP
    answers = HttpAnswers(files.url or "", keys[0] if keys else "", concurrency)
    try:
        asyncio.run(run(answers.answer, concurrency))
    finally:
        answers.close()


def _in_process(files: BatchFiles, settings: Settings, host: PluginHost, run: Run) -> None:
    server = LocalServer.start(settings, host, start_table(settings, host))
    try:
        answers = LocalAnswers(server.state, server.requests, _give_up)
        concurrency = files.concurrency or max(_LEAST_LOCAL, 2 * settings.max_num_seqs)
        server.run(run(answers.answer, concurrency))
    finally:
        server.close()


async def _give_up(error: EngineUnavailableError, num_attempts: int) -> None:
    """An engine of this process isn't started again."""
    raise error


async def _run(
    reading: Reading, contents: Contents, done: Done, results: ResultsFile, answer: Answer, concurrency: int
) -> None:
    started_s = time.monotonic()
    with tqdm(total=contents.num_lines, initial=len(done.ids), desc=reading.path.name, dynamic_ncols=True) as bar:

        async def put(status: int, result: bytes) -> None:
            await results.append(result)
            bar.update()

        counts = await run_lines(reading, done, answer, put, concurrency)
    print(_summary(contents, done, counts, time.monotonic() - started_s), file=sys.stderr)


def _summary(contents: Contents, done: Done, counts: Counts, seconds: float) -> str:
    num_before = len(done.ids)
    num_answered = done.num_answered + counts.num_answered
    num_failed = contents.num_lines - num_answered
    text = f"{contents.num_lines} lines: {num_answered} answered, {num_failed} with an error in their result"
    if contents.num_faults:
        text += f" ({contents.num_faults} of them can't be read as a request)"
    if num_before:
        text += f"; {num_before} were there before"
    return f"{text}; {seconds:.1f} s"
