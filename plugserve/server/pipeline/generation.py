"""All sequences of one request, run at the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from plugserve.core.contracts.requests import RequestUsage
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.wire.request_origin import NO_ORIGIN, RequestOrigin
from plugserve.core.wire.sequence_times import SequenceTimes
from plugserve.server.operations.observers import RecordedSequence
from plugserve.server.operations.request_metrics import ModelMetrics, RequestMeasures
from plugserve.server.operations.tracing.tracer import SequenceSpan
from plugserve.server.pipeline.choice import Choice, Piece
from plugserve.server.pipeline.generation_request import GenerationRequest
from plugserve.server.pipeline.time_limit import too_late
from plugserve.server.worker.engine_client import EngineClient
from plugserve.server.worker.token_stream import TokenStream


@dataclass(frozen=True, slots=True)
class Job:
    """One sequence to generate and the choice that it becomes."""

    choice: Choice
    prompt_token_ids: list[int]
    params: SamplingParams
    block_hashes: bytes = b""


JOBS_A_TURN: Final = 256
"""Jobs that are planned or sent before other requests run."""


@dataclass(slots=True)
class Generation:
    """Runs a request's jobs. started_s is on time.perf_counter's clock; origin is what
    the engine's flight recorder notes, without before_s.

    num_prompt_tokens counts each prompt once, however many choices it gets. The request's timeout_s is counted from
    started_s: then all unfinished jobs are aborted. sent_s is when the first job went to the engine, on started_s's
    clock. trace_id is "" for a request that isn't traced.
    """

    client: EngineClient
    request: GenerationRequest
    jobs: list[Job]
    num_prompt_tokens: int
    metrics: ModelMetrics
    started_s: float
    origin: RequestOrigin = NO_ORIGIN
    trace_id: str = ""
    first_token_s: float | None = None
    sent_s: float | None = None
    _streams: list[TokenStream] = field(default_factory=list)
    _is_late: bool = False

    async def batches(self) -> AsyncGenerator[list[tuple[Choice, Piece]], None]:
        """The pieces of each wake-up, until all choices are finished. Closing it early aborts what still runs;
        use contextlib.aclosing. Raises EngineError when a sequence fails, RequestTimeoutError when time is up."""
        waker = asyncio.Event()
        alarm = self._set_alarm(waker)
        last_token_s: dict[int, float] = {}
        try:
            live = []
            for job in self.jobs:
                live.append((job.choice, self._start(job, waker)))
                if len(live) % JOBS_A_TURN == 0:
                    await asyncio.sleep(0)  # let other requests run
            while live:
                if self._is_late:
                    raise too_late(self.request.timeout_s or 0.0)
                waker.clear()
                batch = [
                    (choice, self._push(choice, stream, last_token_s))
                    for choice, stream in live
                    if stream.has_something
                ]
                live = [(choice, stream) for choice, stream in live if choice.finish_reason is None]
                if batch:
                    yield batch
                else:
                    await waker.wait()
        finally:
            if alarm is not None:
                alarm.cancel()
            self._close_streams()

    def _set_alarm(self, waker: asyncio.Event) -> asyncio.TimerHandle | None:
        timeout_s = self.request.timeout_s
        if timeout_s is None:
            return None

        def ring() -> None:
            """Abort the sequences, so that the engine's memory is freed even if the client reads slowly."""
            self._is_late = True
            self._close_streams()
            waker.set()

        left_s = self.started_s + timeout_s - time.perf_counter()
        return asyncio.get_running_loop().call_later(max(0.0, left_s), ring)

    def _close_streams(self) -> None:
        for stream in self._streams:
            stream.close()

    def _start(self, job: Job, waker: asyncio.Event) -> TokenStream:
        if self.sent_s is None:
            self.sent_s = time.perf_counter()
        stream = self.client.generate(
            job.prompt_token_ids,
            job.params,
            priority=self.request.priority,
            user=self.request.user,
            cache_salt=self.request.cache_salt,
            block_hashes=job.block_hashes,
            origin=msgspec.structs.replace(self.origin, before_s=time.perf_counter() - self.started_s),
            waker=waker,
        )
        self._streams.append(stream)
        return stream

    def _push(self, choice: Choice, stream: TokenStream, last_token_s: dict[int, float]) -> Piece:
        delta = stream.take()
        assert delta is not None
        piece = choice.push(delta)
        if delta.token_ids:
            self._note_tokens(choice.index, len(piece.token_ids) - piece.num_echoed, last_token_s)
        if choice.finish_reason is not None:
            stream.close()
        return piece

    def _note_tokens(self, index: int, num_tokens: int, last_token_s: dict[int, float]) -> None:
        now_s = time.perf_counter()
        if self.first_token_s is None:
            self.first_token_s = now_s - self.started_s
            self.metrics.first_token(self.first_token_s, self.trace_id)
        if index in last_token_s and num_tokens:
            self.metrics.later_tokens((now_s - last_token_s[index]) / num_tokens, times=num_tokens)
        last_token_s[index] = now_s
        self.metrics.generated(num_tokens)

    @property
    def is_finished(self) -> bool:
        """Every choice has its finish_reason."""
        return all(job.choice.finish_reason is not None for job in self.jobs)

    @property
    def usage(self) -> RequestUsage:
        """Tokens so far. Of the choices of one prompt, the first may have computed what the others found cached."""
        cached: dict[int, int] = {}
        for job in self.jobs:
            prompt = id(job.prompt_token_ids)
            cached[prompt] = min(cached.get(prompt, job.choice.num_cached_tokens), job.choice.num_cached_tokens)
        return RequestUsage(
            num_prompt_tokens=self.num_prompt_tokens,
            num_generated_tokens=sum(job.choice.num_tokens for job in self.jobs),
            num_cached_tokens=sum(cached.values()),
            num_reasoning_tokens=self._num_reasoning_tokens,
        )

    @property
    def _num_reasoning_tokens(self) -> int | None:
        counts = [job.choice.num_reasoning_tokens for job in self.jobs]
        return None if None in counts else sum(count for count in counts if count is not None)

    @property
    def queue_s(self) -> float:
        """The longest wait of any sequence."""
        return max((job.choice.queue_s for job in self.jobs), default=0.0)

    @property
    def times(self) -> list[SequenceTimes | None]:
        """The engine's times of each sequence that has ended there."""
        return [stream.times for stream in self._streams]

    def sequences(self) -> list[SequenceSpan]:
        """For a trace: the sequences that reached the engine, at the request's end."""
        if self.sent_s is None:
            return []
        first_s = None if self.first_token_s is None else self.started_s + self.first_token_s
        return [
            SequenceSpan(
                num_prompt_tokens=len(job.prompt_token_ids),
                num_cached_tokens=job.choice.num_cached_tokens,
                num_generated_tokens=job.choice.num_tokens,
                times=stream.times,
                sent_s=self.sent_s,
                queue_s=job.choice.queue_s,
                first_token_s=first_s if job.choice.num_tokens else None,
            )
            for job, stream in zip(self.jobs, self._streams, strict=False)
        ]

    def measures(self, reason: str, total_s: float, usage: RequestUsage) -> RequestMeasures:
        """For metrics, at the request's end."""
        times = [one for one in self.times if one is not None]
        queue_s, first_token_s, num_jobs = self.queue_s, self.first_token_s, len(self.jobs)
        prefill_s = decode_s = 0.0
        if times and len(times) == len(self._streams):
            prefill_s = max(one.prefill_s for one in times)
            decode_s = max(one.decode_s for one in times)
        elif first_token_s is not None and self.sent_s is not None:  # aborted, or ended at a stop string
            prefill_s = max(0.0, self.started_s + first_token_s - self.sent_s - queue_s)
            decode_s = total_s - first_token_s
        decode_s_per_token: float | None = None
        if first_token_s is not None and usage.num_generated_tokens > num_jobs:
            num_later = usage.num_generated_tokens - num_jobs
            decode_s_per_token = (total_s - first_token_s) * num_jobs / num_later
        return RequestMeasures(
            reason=reason,
            total_s=total_s,
            queue_s=queue_s,
            prefill_s=prefill_s,
            decode_s=decode_s,
            first_token_s=first_token_s,
            decode_s_per_token=decode_s_per_token,
            num_prompt_tokens=usage.num_prompt_tokens,
            num_cached_tokens=usage.num_cached_tokens,
            num_generated_tokens=usage.num_generated_tokens,
            longest_answer=max(job.choice.num_tokens for job in self.jobs),
            num_choices=self.request.num_choices,
            max_tokens=self.jobs[0].params.max_tokens,
            num_preemptions=sum(len(one.preemptions) for one in times),
            is_pooling=bool(self.request.pooling),
        )

    def record(self, reason: str) -> list[RecordedSequence]:
        """A trace's entries for the sequences that reached the engine, at the request's end."""
        if self.sent_s is None:
            return []
        first_token_s = None if self.first_token_s is None else self.started_s + self.first_token_s
        return [
            RecordedSequence(
                model=self.client.model,
                user=self.request.user,
                priority=self.request.priority,
                prompt=job.prompt_token_ids,
                num_tokens=job.choice.num_tokens,
                max_tokens=job.params.max_tokens,
                sent_s=self.sent_s,
                end_s=time.perf_counter(),
                first_token_s=first_token_s,
                finish=job.choice.finish_reason or reason,
            )
            for job in self.jobs
        ]
