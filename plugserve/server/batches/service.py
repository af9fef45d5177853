"""The files and batches of a server's clients, as one of its workers serves them.

All workers store files. Batches are run by one worker at a time, the one that holds a lock; the others that have taken
a batch wait for it, so that another one goes on when it dies. Nothing runs while there are no batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from typing import Final

import orjson

from plugserve.core.errors import EngineUnavailableError, PlugserveError
from plugserve.core.settings.settings import Settings
from plugserve.server.api.error_responses import describe
from plugserve.server.batches.batch_job import BatchJob
from plugserve.server.batches.batch_store import ActiveBatch, Batch, BatchStore
from plugserve.server.batches.file_store import FileStore, StorageLimits
from plugserve.server.batches.lines import Line, answered
from plugserve.server.batches.local_answers import LocalAnswers
from plugserve.server.batches.run import Answer
from plugserve.server.pipeline.direct import DirectRequests
from plugserve.server.worker.server_state import ServerState

logger = logging.getLogger(__name__)

LEAST_URGENT: Final = 2**31 - 1
"""The priority of a batch's requests."""
_LOOK_S: Final = 1.0
_TURN_S: Final = 0.02
_ENGINE_S: Final = 1.0
_NUM_ATTEMPTS: Final = 3


class BatchService:
    """concurrency bounds the requests of all batches together. Call resume once, and stop at the end."""

    def __init__(self, state: ServerState, root: Path, limits: StorageLimits, concurrency: int) -> None:
        self.files = FileStore(root, limits)
        self.batches = BatchStore(self.files)
        self._state = state
        self._requests = DirectRequests(state)
        self._concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._leader: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    async def resume(self) -> None:
        """Go on with the batches that an earlier process left."""
        if await asyncio.to_thread(self.batches.active):
            self.wake()

    def wake(self) -> None:
        """There is a new batch, or one to cancel."""
        self._news.set()
        if self._leader is None or self._leader.done():
            self._leader = asyncio.create_task(self._lead(), name="batches")
            self._leader.add_done_callback(_log_failure)

    async def stop(self) -> None:
        """Leave all batches as they are; the next process goes on."""
        if self._leader is not None:
            self._leader.cancel()
            await asyncio.gather(self._leader, return_exceptions=True)

    # ---- which batches run

    async def _lead(self) -> None:
        """Run batches while there are any, or wait for the worker that does."""
        while await asyncio.to_thread(self.batches.active):
            descriptor = await asyncio.to_thread(self.batches.try_to_lead)
            if descriptor is None:
                await asyncio.sleep(_LOOK_S)
                continue
            try:
                await self._run_all()
            finally:
                await self._cancel_jobs()
                os.close(descriptor)

    async def _run_all(self) -> None:
        while True:
            self._news.clear()
            active = await asyncio.to_thread(self.batches.active)
            for one in active:
                if one.id not in self._jobs:
                    self._jobs[one.id] = asyncio.create_task(self._run(one), name=f"batch {one.id}")
            if not active:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._news.wait()

    async def _cancel_jobs(self) -> None:
        jobs, self._jobs = list(self._jobs.values()), {}
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    async def _run(self, active: ActiveBatch) -> None:
        try:
            batch = await asyncio.to_thread(self.batches.find, active.owner, active.id)
            if batch is None or batch.is_ended:
                await asyncio.to_thread(self.batches.forget_active, active)
                return
            job = BatchJob(
                batch,
                self.batches,
                self.files,
                self._answer_of(batch),
                concurrency=self._concurrency,
                max_line_bytes=self._state.limits.max_body_bytes,
            )
            await job.run()
        finally:
            self._jobs.pop(active.id, None)
            self._news.set()

    # ---- one request

    def _answer_of(self, batch: Batch) -> Answer:
        """Answers this batch's lines, when it is their turn."""
        answers = LocalAnswers(
            self._state,
            self._requests,
            self._wait_for_engine,
            identity=batch.identity,
            further={"priority": LEAST_URGENT},
        )

        async def answer(line: Line) -> tuple[int, bytes]:
            async with self._slots:
                await self._wait_for_turn(line)
                try:
                    return await answers.answer(line)
                except EngineUnavailableError as error:
                    status, described = describe(error)
                    return status, answered(line, status, "", orjson.dumps(described))

        return answer

    async def _wait_for_turn(self, line: Line) -> None:
        """Return when the engine that line is for is up and nothing waits in it: then interactive requests have what
        they need."""
        name = line.body.get("model") if line.body is not None else None
        try:
            model = self._state.models.find(name if isinstance(name, str) else None)
        except PlugserveError:
            return  # the request's own error tells why
        while model.state in ("loading", "dead"):
            await asyncio.sleep(_ENGINE_S)
        while model.client.state == "up" and (await model.client.stats()).num_requests_waiting:
            await asyncio.sleep(_TURN_S)

    async def _wait_for_engine(self, error: EngineUnavailableError, num_attempts: int) -> None:
        """An engine that died is started again. Raises error for a line that failed with several of them."""
        if num_attempts >= _NUM_ATTEMPTS:
            raise error
        await asyncio.sleep(_ENGINE_S)
        while self._state.models.state != "ok":
            await asyncio.sleep(_ENGINE_S)


def batch_service(state: ServerState, settings: Settings, root: Path) -> BatchService:
    """The service with the settings' limits."""
    concurrency = settings.max_batch_requests or max(1, settings.max_num_seqs // 2)
    return BatchService(state, root, StorageLimits(settings.max_files, settings.max_files_size), concurrency)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("batches are not run any more", exc_info=error)
