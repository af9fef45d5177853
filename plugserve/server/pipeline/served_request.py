"""One request that generates, from its body to its end, whatever brings it: HTTP, a line of a batch, a call in this
process.

Every request ends exactly once: answered, failed, or left by its client (which aborts its sequences at once). The end
closes the span and counts the metrics.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from plugserve.core.contracts.requests import RequestTimings, RequestUsage, RequestView
from plugserve.core.errors import QueueFullError
from plugserve.core.wire.request_origin import RequestOrigin
from plugserve.server.api.error_responses import log_if_ours
from plugserve.server.api.json_body import model_name, shown
from plugserve.server.operations.tracing.tracer import NULL_TRACE, RequestTrace
from plugserve.server.pipeline.choice import Piece
from plugserve.server.pipeline.encoder_prompts import check_task, encoder_prompts
from plugserve.server.pipeline.generation import Generation
from plugserve.server.pipeline.generation_api import Answer, CheckedBody, GenerationApi, ResponseFacts
from plugserve.server.pipeline.generation_request import GenerationRequest
from plugserve.server.pipeline.jobs import plan_jobs
from plugserve.server.pipeline.limits import Limits
from plugserve.server.pipeline.prompt_hashes import hash_prompts
from plugserve.server.pipeline.prompts import Prompt, make_prompts
from plugserve.server.pipeline.request_attributes import request_attributes, result_attributes
from plugserve.server.pipeline.sampling_fields import SamplingFields
from plugserve.server.pipeline.time_limit import within
from plugserve.server.sandbox.fair_queue import Sender
from plugserve.server.worker.served_models import ServedModel, TextSide
from plugserve.server.worker.server_state import Hooks, ServerState

logger = logging.getLogger(__name__)

MAX_NAMES_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class RequestEnding:
    """The outcome of a request, for the last hooks, which are called when the response has been sent."""

    view: RequestView
    usage: RequestUsage
    timings: RequestTimings
    error: Exception | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked body, and its sequences ready to be sent."""

    body: CheckedBody
    facts: ResponseFacts
    generation: Generation


class ServedRequest:
    """account is the sender's name in queues that take turns, trace the one that the request belongs to. error is the
    failure of a stream that had begun; ending is None until the request's life is over."""

    def __init__(
        self,
        state: ServerState,
        api: GenerationApi,
        view: RequestView,
        account: str = "",
        trace: RequestTrace = NULL_TRACE,
    ) -> None:
        self._state = state
        self._api = api
        self._view = view
        self._account = account
        self._started_s = time.perf_counter()
        self._trace = trace
        self._span = trace.generation(api.operation, view.model or state.models.default_name)
        self._model: ServedModel | None = None
        self._generation: Generation | None = None
        self._response_id = ""
        self._load_wait_s = 0.0
        self._uses = AsyncExitStack()  # of the model
        self.ignored_fields: list[str] = []
        self.error: Exception | None = None
        self.ending: RequestEnding | None = None

    @asynccontextmanager
    async def life(self) -> AsyncIterator[None]:
        """The request is in flight, and ends with the context. Raises what ended it."""
        try:
            with self._state.in_flight():
                async with self._uses:
                    yield
        except asyncio.CancelledError:
            self._finish("abort", None)
            raise
        except Exception as failure:
            self._fail(failure)
            raise
        if self.error is not None:
            self._fail(self.error)
        else:
            self._finish(self._finish_reasons()[0], None)

    # ---- before the engine

    async def prepare(self, read: Callable[[], Mapping[str, Any]]) -> Prepared:
        """read returns the client's JSON object. Raises RequestError, EngineUnavailableError or RequestTimeoutError."""
        async with within(self._state.limits.timeout_s, self._started_s):
            await self._state.wait_until_started()
            return await self._prepare(read())

    async def _prepare(self, given: Mapping[str, Any]) -> Prepared:
        fields = await self._body_for_plugins(given)
        model = self._model = await self._state.find_model(model_name(fields))
        self._view = replace(self._view, model=model.name)
        identity = self._view.identity
        owner = self._view.owner
        body = await self._api.read(fields, owner)
        self._note_ignored(body.ignored_fields)
        request = replace(
            self._state.answers.applied(body.request),
            user="/".join(filter(None, (identity.name if identity is not None else "", body.request.user))),
            cache_salt=self._state.limits.cache_salt(owner, body.request.cache_salt),
            adapter=model.cache_key,
            timeout_s=self._state.limits.timeout_s,
            sampling=self._sampling(body.request),
        )
        waits_since_s = time.perf_counter()
        text = await self._uses.enter_async_context(
            model.in_use(self._state.limits.load_timeout_s, request.keep_alive_s)
        )
        planned_since_s = time.perf_counter()
        self._trace.step("wait for model", waits_since_s, planned_since_s)
        self._load_wait_s = planned_since_s - waits_since_s
        limits = model.limits(self._state.max_logprobs, self._state.limits)
        sender = Sender(self._account, body.request.user)
        generation = self._generation = await self._plan(request, model, text, limits, sender)
        self._trace.step("make prompt", planned_since_s, time.perf_counter())
        generation.metrics.admitted(generation.num_prompt_tokens)
        if self._span.is_recording:
            self._span.set(request_attributes(request, generation.jobs[0].params, self._view.id))
        self._response_id = self._api.id_prefix + (request.request_id or self._view.id)
        facts = ResponseFacts(
            id=self._response_id,
            created=int(time.time()),
            model=model.name,
            vocabulary=text.vocabulary,
            request=request,
            sampling_defaults=limits.defaults,
            encoder=text.encoder.facts if text.encoder is not None else None,
        )
        return Prepared(body, facts, generation)

    def _sampling(self, request: GenerationRequest) -> SamplingFields:
        return request.sampling if request.pooling else self._state.seeds.seeded(request.sampling)

    async def _plan(
        self, request: GenerationRequest, model: ServedModel, text: TextSide, limits: Limits, sender: Sender
    ) -> Generation:
        """Prompts and jobs. Raises RequestError (400)."""
        encoder = text.encoder
        check_task(request, model.name, encoder.facts if encoder is not None else None)
        if encoder is not None:
            prompts = await encoder_prompts(request, encoder, limits, self._state.pool)
        else:
            prompts = await make_prompts(request, text, limits, self._state.pool, sender)
        self._state.answers.prompt_log.note(self._view.id, model.name, prompts)
        grammar = ""
        if request.grammar is not None:
            grammar = await text.compile_grammar(request.grammar, prompts[0].answer_prefix, sender)
        if not request.pooling:
            prompts = await self._hashed(prompts, request, model)
        adjust = partial(self._state.hooks.sampling_params, self._view)
        return Generation(
            model.client,
            request,
            await plan_jobs(request, prompts, text, limits, grammar, adjust),
            sum(len(prompt.token_ids) for prompt in prompts),
            self._state.metrics_of(model.metrics_name),
            self._started_s,
            RequestOrigin(self._view.id, self._view.path, load_wait_s=self._load_wait_s),
            self._trace.trace_id if self._span.is_recording else "",
        )

    async def _hashed(self, prompts: list[Prompt], request: GenerationRequest, model: ServedModel) -> list[Prompt]:
        """prompts with their block hashes, where the engine has a prefix cache."""
        info = model.client.info
        if info is None or not info.prefix_salt:
            return prompts
        return await hash_prompts(prompts, info, request.cache_salt, self._state.pool, adapter=request.adapter)

    async def _body_for_plugins(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """body, or a plugin's replacement. Raises RequestError."""
        self._view = replace(self._view, body=body)
        replaced = await self._state.hooks.request_received(self._view)
        if replaced is None:
            return body
        model = replaced.get("model")
        self._view = replace(self._view, body=replaced, model=model if isinstance(model, str) else None)
        return replaced

    def _note_ignored(self, names: list[str]) -> None:
        if names:
            self.ignored_fields = names
            more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
            listed = ", ".join(map(shown, names[:MAX_NAMES_SHOWN])) + more
            logger.info("request id=%s ignored fields: %s", self._view.id, listed)

    # ---- the answer

    async def answers(self, generation: Generation) -> list[Answer]:
        """All choices, whole. Raises EngineError or RequestTimeoutError."""
        pieces = {job.choice.index: Piece() for job in generation.jobs}
        async with aclosing(generation.batches()) as batches:
            async for batch in batches:
                for choice, piece in batch:
                    pieces[choice.index].extend(piece)
        return [
            Answer(job.choice.index, pieces[job.choice.index], job.prompt_token_ids, job.choice.prompt_logprobs)
            for job in generation.jobs
        ]

    async def plain(self, prepared: Prepared) -> bytes:
        """The plain response's body."""
        answers = await self.answers(prepared.generation)
        return await prepared.body.plain(prepared.facts).answer(answers, prepared.generation.usage)

    # ---- the end

    def _finish_reasons(self) -> list[str]:
        jobs = self._generation.jobs if self._generation is not None else []
        return [job.choice.finish_reason or "abort" for job in jobs] or ["abort"]

    def _fail(self, error: Exception) -> None:
        log_if_ours(error, self._view.id)
        if isinstance(error, QueueFullError) and self._model is not None:
            self._state.metrics_of(self._model.metrics_name).refused()
        self._finish("error", error)

    def _finish(self, reason: str, error: Exception | None) -> None:
        generation = self._generation
        usage = generation.usage if generation is not None else RequestUsage(0, 0)
        timings = RequestTimings(
            total_s=time.perf_counter() - self._started_s,
            queue_s=generation.queue_s if generation is not None else 0.0,
            first_token_s=generation.first_token_s if generation is not None else None,
            finish_reason=reason,
        )
        if self._span.is_recording:
            sequences = generation.sequences() if generation is not None else []
            self._span.finish(self._result_attributes(usage, timings), sequences, error)
        if generation is not None:
            generation.metrics.finished(generation.measures(reason, timings.total_s, usage), generation.trace_id)
            self._state.recorder.note(generation.record(reason))
        self.ending = RequestEnding(self._view, usage, timings, error)

    def _result_attributes(self, usage: RequestUsage, timings: RequestTimings) -> dict[str, Any]:
        if self._generation is None:
            return {}
        model = self._model.name if self._model is not None else ""
        is_error = timings.finish_reason == "error"
        reasons = ["error"] if is_error else self._finish_reasons()
        return result_attributes(self._generation, self._response_id, model, reasons, usage, timings)


async def report_ending(hooks: Hooks, ending: RequestEnding) -> None:
    """Call the hook for a finished or failed request."""
    if ending.error is not None:
        await hooks.observe_async("plugserve_error", request=ending.view, error=ending.error)
    else:
        await hooks.observe_async(
            "plugserve_request_finished", request=ending.view, usage=ending.usage, timings=ending.timings
        )
