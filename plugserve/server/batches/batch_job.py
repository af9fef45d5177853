"""Runs one stored batch from its input file to its result files, and goes on where an earlier process stopped."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from plugserve.core.errors import RequestError, UserError
from plugserve.server.batches.batch_store import Batch, BatchError, BatchStore
from plugserve.server.batches.file_store import FileStore, StoredFile
from plugserve.server.batches.lines import Line, LineFault, failed
from plugserve.server.batches.results import ResultsFile
from plugserve.server.batches.run import Answer, Contents, Done, Reading, run_lines, survey

logger = logging.getLogger(__name__)

MAX_LINES: Final = 50_000
_SAVE_S: Final = 1.0
_EXPIRED: Final = LineFault("batch_expired", "The batch was not finished within its completion window.")


class _CancelledByClientError(Exception):
    """The batch's client cancelled it."""


class BatchJob:
    """run once; it raises only CancelledError (the server stops), which leaves the batch for the next process."""

    def __init__(
        self,
        batch: Batch,
        batches: BatchStore,
        files: FileStore,
        answer: Answer,
        *,
        concurrency: int,
        max_line_bytes: int,
    ) -> None:
        self._batch = batch
        self._batches = batches
        self._files = files
        self._answer = answer
        self._concurrency = concurrency
        source = files.path(batch.owner, batch.input_file_id)
        self._reading = Reading(source, max_line_bytes, batch.id, batch.endpoint)
        self._num_bytes = 0
        self._saved_s = 0.0

    async def run(self) -> None:
        batch = self._batch
        try:
            contents = await asyncio.to_thread(self._survey)
            output, errors = await asyncio.to_thread(self._open_results)
            try:
                await self._run(contents, output, errors)
            finally:
                await asyncio.to_thread(_close, output, errors)
        except _CancelledByClientError:
            batch.enter("cancelling")
            batch.enter("cancelled")
        except (UserError, OSError) as error:
            logger.warning("batch id=%s failed: %s", batch.id, error)
            code = getattr(error, "code", None) or "invalid_batch"
            message = str(error) if isinstance(error, UserError) else "The results can't be written; ask the operator."
            batch.errors = [BatchError(code, message)]
            batch.enter("failed")
        except Exception:
            logger.exception("batch id=%s failed", batch.id)
            batch.errors = [BatchError("internal_error", "The server failed to run this batch; its log has the cause.")]
            batch.enter("failed")
        await asyncio.to_thread(self._end)

    def _survey(self) -> Contents:
        """Raises UserError for a batch that can't be run as a whole."""
        contents = survey(self._reading)
        if not contents.num_lines:
            raise RequestError("The input file holds no lines.", code="empty_file")
        if contents.num_lines > MAX_LINES:
            raise RequestError(
                f"The input file holds {contents.num_lines} lines; a batch has at most {MAX_LINES}. Send several.",
                code="too_many_lines",
            )
        return contents

    def _open_results(self) -> tuple[ResultsFile, ResultsFile]:
        output = ResultsFile(self._files.path(self._batch.owner, self._batch.output_file_id))
        try:
            return output, ResultsFile(self._files.path(self._batch.owner, self._batch.error_file_id))
        except BaseException:
            output.close()
            raise

    async def _run(self, contents: Contents, output: ResultsFile, errors: ResultsFile) -> None:
        batch, done = self._batch, await asyncio.to_thread(_done, contents, output, errors)
        batch.num_total = contents.num_lines
        batch.num_completed = done.num_answered
        batch.num_failed = len(done.ids) - done.num_answered
        self._num_bytes = await asyncio.to_thread(self._files.num_bytes, batch.owner)
        if batch.in_progress_at is None:
            batch.enter("in_progress")
        await self._save()

        async def put(status: int, result: bytes) -> None:
            self._check_room(len(result))
            is_answer = 0 < status < 400
            batch.num_completed += is_answer
            batch.num_failed += not is_answer
            await (output if is_answer else errors).append(result)
            await self._note_progress()

        left_s = batch.expires_at - time.time()
        try:
            async with asyncio.timeout(max(0.0, left_s)) as limit:
                await self._until_cancelled(run_lines(self._reading, done, self._answer, put, self._concurrency))
        except TimeoutError:
            if not limit.expired():
                raise
            await self._expire(await asyncio.to_thread(_done, contents, output, errors), put)
            batch.enter("expired")
            return
        batch.enter("finalizing")
        await self._save()
        batch.enter("completed")

    async def _until_cancelled(self, work: Awaitable[object]) -> None:
        """Run work, unless the client cancels the batch."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait([task], timeout=_SAVE_S)
                if not task.done() and await asyncio.to_thread(self._batches.is_to_cancel, self._batch):
                    raise _CancelledByClientError
            task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _expire(self, done: Done, put: Callable[[int, bytes], Awaitable[None]]) -> None:
        """Give every line that is left an error."""
        left: list[Line] = await asyncio.to_thread(
            lambda: [line for line in self._reading.lines() if not done.holds(line)]
        )
        for line in left:
            await put(0, failed(line, line.fault or _EXPIRED))

    def _check_room(self, num_bytes: int) -> None:
        """Raises RequestError when the tenant's files would take too much."""
        self._num_bytes += num_bytes
        if self._num_bytes > (most := self._files.limits.max_bytes):
            raise RequestError(
                f"The results and other files take more than {most} bytes, which this server keeps (--max-files-size); "
                "delete some and send the batch again.",
                code="storage_limit_reached",
            )

    async def _note_progress(self) -> None:
        if time.monotonic() - self._saved_s >= _SAVE_S:
            await self._save()

    async def _save(self) -> None:
        self._saved_s = time.monotonic()
        await asyncio.to_thread(self._batches.save, self._batch)

    def _end(self) -> None:
        """Let the result files exist, and end the batch."""
        batch = self._batch
        batch.has_output = self._keep_results(batch.output_file_id, f"{batch.id}_output.jsonl")
        batch.has_errors = self._keep_results(batch.error_file_id, f"{batch.id}_error.jsonl")
        self._batches.end(batch)

    def _keep_results(self, id: str, filename: str) -> bool:
        """False, and no file, where there are no results."""
        path = self._files.path(self._batch.owner, id)
        size = path.stat().st_size if path.exists() else 0
        if not size:
            path.unlink(missing_ok=True)
            return False
        file = StoredFile(id=id, num_bytes=size, created_at=int(time.time()), filename=filename, purpose="batch_output")
        self._files.register(self._batch.owner, file)
        return True


def _done(contents: Contents, output: ResultsFile, errors: ResultsFile) -> Done:
    """What both files hold."""
    done = Done(contents)
    for results in (output, errors):
        results.keep(done.keep)
    return done


def _close(*files: ResultsFile) -> None:
    for results in files:
        results.close()
