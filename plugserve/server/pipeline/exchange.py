"""Serves one generating request, from its body to the last byte of its answer.

Every exchange ends exactly once: answered, failed, or disconnected by its client (which aborts its sequences at once).
The end closes the span, counts the metrics and calls the plugins' hooks.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from sanic import Request
from sanic.response import BaseHTTPResponse, HTTPResponse

from plugserve.core.contracts.requests import RequestTimings, RequestUsage, RequestView
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.server.api.error_responses import log_if_ours
from plugserve.server.api.json_body import JSON_TYPE, json_object, model_name, shown
from plugserve.server.operations.observers import RequestSpan
from plugserve.server.pipeline.choice import Piece
from plugserve.server.pipeline.generation import Generation
from plugserve.server.pipeline.generation_api import Answer, CheckedBody, GenerationApi, ResponseFacts
from plugserve.server.pipeline.generation_request import GenerationRequest
from plugserve.server.pipeline.jobs import plan_jobs
from plugserve.server.pipeline.limits import Limits
from plugserve.server.pipeline.prompt_hashes import hash_prompts
from plugserve.server.pipeline.prompts import Prompt, make_prompts
from plugserve.server.pipeline.time_limit import within
from plugserve.server.sandbox.fair_queue import Sender
from plugserve.server.worker.served_models import ServedModel, TextSide
from plugserve.server.worker.server_state import ServerState, state_of

logger = logging.getLogger(__name__)

_STREAM_HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_MAX_NAMES_SHOWN: Final = 20
_NOT_IN_HEADERS: Final = re.compile(r"[^\x20-\x7e]")

Handler = Callable[..., Coroutine[Any, Any, HTTPResponse | None]]


def generating(api: GenerationApi) -> Handler:
    """The handler of a route that serves api."""

    async def handle(request: Request) -> HTTPResponse | None:
        return await Exchange(state_of(request), api, request).serve()

    return handle


@dataclass(frozen=True, slots=True)
class RequestEnding:
    """The outcome of an exchange, for the last hooks, which are called when the response has been sent."""

    view: RequestView
    usage: RequestUsage
    timings: RequestTimings
    error: Exception | None


class Exchange:
    """Serve once."""

    def __init__(self, state: ServerState, api: GenerationApi, request: Request) -> None:
        self._state = state
        self._api = api
        self._request = request
        self._view: RequestView = request.ctx.view
        self._started_s = time.perf_counter()
        asked = self._view.model or state.models.default_name
        self._span: RequestSpan = state.tracer.start(api.operation, asked, self._view.headers)
        self._model: ServedModel | None = None
        self._generation: Generation | None = None
        self._ignored: list[str] = []
        self._response_id = ""

    async def serve(self) -> HTTPResponse | None:
        """The plain response, or None after a stream. Raises exceptions that become error responses."""
        try:
            with self._state.in_flight():
                async with within(self._state.limits.timeout_s, self._started_s):
                    await self._state.wait_until_started()
                    body, facts, generation = await self._prepare()
                if body.request.stream:
                    error = await self._stream(body, facts, generation)
                    response: HTTPResponse | None = None
                else:
                    response, error = await self._answer(body, facts, generation), None
        except asyncio.CancelledError:
            self._finish("abort", None)
            raise
        except Exception as failure:
            self._fail(failure)
            raise
        if error is not None:
            self._fail(error)
        else:
            self._finish(self._finish_reasons()[0], None)
        return response

    # ---- before the engine

    async def _prepare(self) -> tuple[CheckedBody, ResponseFacts, Generation]:
        """The checked body, and its sequences ready to be sent. Raises RequestError or EngineUnavailableError."""
        fields = await self._body_for_plugins()
        model = self._model = self._state.models.find(model_name(fields))
        self._view = replace(self._view, model=model.name)
        identity = self._view.identity
        owner = self._view.owner
        body = await self._api.read(fields, owner)
        self._note_ignored(body.ignored_fields)
        request = replace(
            body.request,
            user="/".join(filter(None, (identity.name if identity is not None else "", body.request.user))),
            cache_salt=self._state.limits.cache_salt(owner, body.request.cache_salt),
            adapter=model.cache_key,
            timeout_s=self._state.limits.timeout_s,
        )
        text = model.ready_text
        limits = model.limits(self._state.max_logprobs, self._state.limits)
        sender = self._state.access.sender_of(self._request, body.request.user)
        generation = self._generation = await self._plan(request, model, text, limits, sender)
        generation.metrics.prompt_tokens.inc(generation.num_prompt_tokens)
        self._span.set(_request_attributes(request, generation.jobs[0].params))
        self._response_id = self._api.id_prefix + (request.request_id or self._view.id)
        facts = ResponseFacts(
            self._response_id, int(time.time()), model.name, text.vocabulary, request, limits.defaults
        )
        return body, facts, generation

    async def _plan(
        self, request: GenerationRequest, model: ServedModel, text: TextSide, limits: Limits, sender: Sender
    ) -> Generation:
        """Prompts and jobs. Raises RequestError (400)."""
        prompts = await make_prompts(request, text, limits, self._state.pool, sender)
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
        )

    async def _hashed(self, prompts: list[Prompt], request: GenerationRequest, model: ServedModel) -> list[Prompt]:
        """prompts with their block hashes, where the engine has a prefix cache."""
        info = model.client.info
        if info is None or not info.prefix_salt:
            return prompts
        return await hash_prompts(prompts, info, request.cache_salt, self._state.pool, adapter=request.adapter)

    async def _body_for_plugins(self) -> Mapping[str, Any]:
        """The client's JSON object, or a plugin's replacement. Raises RequestError (400 or 415)."""
        body = json_object(self._request, self._view.body)
        self._view = replace(self._view, body=body)
        replaced = await self._state.hooks.request_received(self._view)
        if replaced is None:
            return body
        model = replaced.get("model")
        self._view = replace(self._view, body=replaced, model=model if isinstance(model, str) else None)
        return replaced

    def _note_ignored(self, names: list[str]) -> None:
        if names:
            self._ignored = names
            more = f" and {len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else ""
            listed = ", ".join(map(shown, names[:_MAX_NAMES_SHOWN])) + more
            logger.info("request id=%s ignored fields: %s", self._view.id, listed)

    @property
    def _headers(self) -> dict[str, str]:
        if not self._ignored:
            return {}
        names = ",".join(self._ignored[:_MAX_NAMES_SHOWN])[:500]
        return {"x-plugserve-ignored-fields": _NOT_IN_HEADERS.sub("?", names)}

    # ---- plain

    async def _answer(self, body: CheckedBody, facts: ResponseFacts, generation: Generation) -> HTTPResponse:
        pieces = {job.choice.index: Piece() for job in generation.jobs}
        async with aclosing(generation.batches()) as batches:
            async for batch in batches:
                for choice, piece in batch:
                    pieces[choice.index].extend(piece)
        answers = [
            Answer(job.choice.index, pieces[job.choice.index], job.prompt_token_ids, job.choice.prompt_logprobs)
            for job in generation.jobs
        ]
        data = await body.plain(facts).answer(answers, generation.usage)
        return HTTPResponse(data, headers=self._headers, content_type=JSON_TYPE)

    # ---- stream

    async def _stream(self, body: CheckedBody, facts: ResponseFacts, generation: Generation) -> Exception | None:
        """Send events as they come. Raises before the first one; afterwards an error becomes an event and is
        returned."""
        writer = body.stream(facts, generation)
        response: BaseHTTPResponse | None = None
        error: Exception | None = None
        try:
            async with aclosing(generation.batches()) as batches:
                async for batch in batches:
                    data = writer.events(batch)
                    if generation.is_finished:
                        data += await writer.ending(generation.usage)
                    if response is None:
                        response = await self._open_stream()
                    if data:
                        await response.send(data)
        except Exception as failure:
            if response is None:
                raise
            error = failure
            await response.send(writer.failure(failure))
        assert response is not None
        await response.eof()  # type: ignore[attr-defined]
        return error

    async def _open_stream(self) -> BaseHTTPResponse:
        headers = {**_STREAM_HEADERS, **self._headers}
        response: BaseHTTPResponse = await self._request.respond(headers=headers, content_type="text/event-stream")
        return response

    # ---- the end

    def _finish_reasons(self) -> list[str]:
        jobs = self._generation.jobs if self._generation is not None else []
        return [job.choice.finish_reason or "abort" for job in jobs] or ["abort"]

    def _fail(self, error: Exception) -> None:
        log_if_ours(error, self._view.id)
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
        self._span.finish(self._result_attributes(usage, timings), error)
        if generation is not None:
            _count(generation, usage, timings, reason)
            self._state.recorder.note(generation.record(reason))
        self._request.ctx.ending = RequestEnding(self._view, usage, timings, error)

    def _result_attributes(self, usage: RequestUsage, timings: RequestTimings) -> dict[str, Any]:
        if self._generation is None:
            return {}
        is_error = timings.finish_reason == "error"
        return {
            "gen_ai.response.id": self._response_id,
            "gen_ai.response.model": self._model.name if self._model is not None else None,
            "gen_ai.response.finish_reasons": ["error"] if is_error else self._finish_reasons(),
            "gen_ai.usage.input_tokens": usage.num_prompt_tokens,
            "gen_ai.usage.output_tokens": usage.num_generated_tokens,
            "gen_ai.server.time_to_first_token": timings.first_token_s,
            "gen_ai.latency.time_to_first_token": timings.first_token_s,
            "gen_ai.latency.time_in_queue": timings.queue_s,
            "gen_ai.latency.e2e": timings.total_s,
        }


def _count(generation: Generation, usage: RequestUsage, timings: RequestTimings, reason: str) -> None:
    decode_s: float | None = None
    if timings.first_token_s is not None and usage.num_generated_tokens > len(generation.jobs):
        num_later = usage.num_generated_tokens - len(generation.jobs)
        decode_s = (timings.total_s - timings.first_token_s) * len(generation.jobs) / num_later
    generation.metrics.finished(reason, total_s=timings.total_s, queue_s=timings.queue_s, decode_s_per_token=decode_s)
    generation.metrics.sizes(usage.num_prompt_tokens, usage.num_generated_tokens)


def _request_attributes(request: GenerationRequest, params: SamplingParams) -> dict[str, Any]:
    if request.pooling:
        return {}
    sampling, grammar = request.sampling, request.grammar
    return {
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": float(params.top_k) if params.top_k else None,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.seed": sampling.seed,
        "gen_ai.request.stop_sequences": list(request.stop) or None,
        "gen_ai.request.choice.count": request.num_choices if request.num_choices != 1 else None,
        "gen_ai.output.type": "json" if grammar is not None and grammar.kind == "json" else "text",
    }
