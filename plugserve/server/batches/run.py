"""Runs the lines of a batch, a bounded number at a time, and goes on where an earlier run stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

from plugserve.core.errors import UserError
from plugserve.server.api.json_body import shown
from plugserve.server.batches.lines import Line, duplicate, failed, read_line, texts_of
from plugserve.server.batches.results import Result

_READ_AHEAD: Final = 16  # lines that one visit to the reading thread gives


@dataclass(frozen=True, slots=True)
class Reading:
    """How lines are read: see read_line."""

    path: Path
    max_line_bytes: int
    batch: str = ""
    endpoint: str | None = None

    def lines(self) -> Iterator[Line]:
        """All lines, those with an earlier one's custom_id as faults. Blocks: use it in a thread."""
        firsts: dict[str, int] = {}
        with open(self.path, "rb") as file:
            for number, text in texts_of(file, self.max_line_bytes):
                line = read_line(number, text, max_bytes=self.max_line_bytes, batch=self.batch, endpoint=self.endpoint)
                if line.custom_id is None:
                    yield line
                elif (first := firsts.setdefault(line.custom_id, number)) != number:
                    yield duplicate(line, first)
                else:
                    yield line


@dataclass(slots=True)
class Contents:
    """What a batch's file holds: the ids of results and custom_ids, of all lines; the models that they name."""

    ids: set[str] = field(default_factory=set)
    custom_ids: set[str] = field(default_factory=set)
    models: set[str | None] = field(default_factory=set)
    num_faults: int = 0

    @property
    def num_lines(self) -> int:
        return len(self.ids)


def survey(reading: Reading) -> Contents:
    """Read the whole file once. Blocks. Raises UserError for a file that can't be read."""
    contents = Contents()
    try:
        for line in reading.lines():
            contents.ids.add(line.id)
            if line.custom_id is not None:
                contents.custom_ids.add(line.custom_id)
            if line.body is not None:
                model = line.body.get("model")
                contents.models.add(model if isinstance(model, str) else None)
            contents.num_faults += line.fault is not None
    except OSError as error:
        raise UserError(f"{reading.path} can't be read: {error.strerror}") from None
    return contents


@dataclass(slots=True)
class Done:
    """What earlier runs have finished, collected from their results. num_changed counts answers to lines that have
    changed since."""

    contents: Contents
    ids: set[str] = field(default_factory=set)
    num_answered: int = 0
    num_changed: int = 0

    def keep(self, result: Result) -> bool:
        """Collect a result; False for one to drop: its request is to be made again, or its line has changed. Raises
        UserError for a result of another batch."""
        if result.id not in self.contents.ids:
            if result.custom_id is not None and result.custom_id not in self.contents.custom_ids:
                raise UserError(
                    f"the results belong to another batch: no line of this one has custom_id {shown(result.custom_id)}"
                )
            self.num_changed += result.is_answered
            return False
        if not result.is_final or result.id in self.ids:
            return False
        self.ids.add(result.id)
        self.num_answered += result.is_answered
        return True

    def holds(self, line: Line) -> bool:
        return line.id in self.ids


@dataclass(slots=True)
class Counts:
    """Results so far: of lines that were answered, of requests that failed or were refused, of lines with a fault."""

    num_answered: int = 0
    num_failed: int = 0
    num_faults: int = 0


Answer = Callable[[Line], Awaitable[tuple[int, bytes]]]
"""The status, and the line of the result. An exception ends the run; the line is left for the next one."""

Put = Callable[[int, bytes], Awaitable[None]]
"""Writes a result: its status (0 for a line with a fault) and its line."""


async def run_lines(reading: Reading, done: Done, answer: Answer, put: Put, concurrency: int) -> Counts:
    """Answer every line that isn't done, in the file's order, at most concurrency at a time; results are put as they
    come. Raises the first exception of answer or put, after the others were cancelled."""
    counts = Counts()
    lines = _unfinished(reading, done)
    reader = asyncio.Lock()

    async def work() -> None:
        while True:
            async with reader:
                line = await anext(lines, None)
            if line is None:
                return
            if line.fault is not None:
                counts.num_faults += 1
                await put(0, failed(line, line.fault))
                continue
            status, result = await answer(line)
            if status < 400:
                counts.num_answered += 1
            else:
                counts.num_failed += 1
            await put(status, result)

    workers = [asyncio.create_task(work()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return counts


async def _unfinished(reading: Reading, done: Done) -> AsyncIterator[Line]:
    """The lines that are left, read in a thread."""
    lines = (line for line in reading.lines() if not done.holds(line))
    while some := await asyncio.to_thread(lambda: list(islice(lines, _READ_AHEAD))):
        for line in some:
            yield line
