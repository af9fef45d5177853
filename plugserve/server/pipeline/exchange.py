"""One chat or completion request from its body to the last byte of its answer, whatever happens on the way.

Every exchange ends exactly once: answered, failed, or left by its client (which aborts its sequences at once). The end
closes the span, counts the metrics and tells the plugins.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
import time
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any, Final

import orjson
from sanic import Request
from sanic.response import BaseHTTPResponse, HTTPResponse

from plugserve.core.contracts.requests import RequestTimings, RequestUsage, RequestView
from plugserve.core.errors import RequestError
from plugserve.server.api.error_responses import JSON_TYPE, log_if_ours
from plugserve.server.api.formats import Answer, AnswerFormat, ResponseFacts
from plugserve.server.api.generation_body import read_json, shown
from plugserve.server.operations.tracing import RequestSpan
from plugserve.server.pipeline.choice import Piece
from plugserve.server.pipeline.endpoints import Endpoint, Parsed
from plugserve.server.pipeline.generation import Generation
from plugserve.server.pipeline.planning import plan_jobs
from plugserve.server.pipeline.prompt_hashes import hash_prompts
from plugserve.server.worker.served_models import ServedModel
from plugserve.server.worker.server_state import ServerState

logger = logging.getLogger(__name__)

_STREAM_HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_MAX_NAMES_SHOWN: Final = 20
_NOT_IN_HEADERS: Final = re.compile(r"[^\x20-\x7e]")


class Exchange:
    """Serve once. view is the request as plugins see it; its body is the client's JSON object."""

    def __init__(self, state: ServerState, endpoint: Endpoint, request: Request, view: RequestView) -> None:
        self._state = state
        self._endpoint = endpoint
        self._request = request
        self._view = view
        self._started_s = time.perf_counter()
        asked = view.model or state.models.default_name
        self._span: RequestSpan = state.tracer.start(endpoint.operation, asked, view.headers)
        self._model: ServedModel | None = None
        self._generation: Generation | None = None
        self._ignored: list[str] = []
        self._response_id = ""

    async def serve(self) -> HTTPResponse | None:
        """The plain response, or None after a stream. Raises what the client must be told."""
        try:
            with self._state.in_flight():
                await self._state.wait_until_started()
                parsed, format = await self._prepare()
                if parsed.body.stream:
                    error = await self._stream(parsed, format)
                    response: HTTPResponse | None = None
                else:
                    response, error = await self._answer(format), None
        except asyncio.CancelledError:
            self._finish("abort", None)
            raise
        except Exception as failure:
            await self._fail(failure)
            raise
        if error is not None:
            await self._fail(error)
        else:
            self._finish(self._finish_reasons()[0], None)
        return response

    # ---- before the engine

    async def _prepare(self) -> tuple[Parsed, AnswerFormat]:
        body = await self._body_for_plugins()
        model = self._model = self._state.models.find(model_name(body))
        self._view = dataclasses.replace(self._view, model=model.name)
        parsed = self._endpoint.parse(body)
        self._note_ignored(parsed.ignored)
        text = model.ready_text
        limits = model.limits(self._state.max_logprobs, self._state.limits)
        prompts = await self._endpoint.prompts(parsed.body, text, limits, self._state.pool)
        grammar = "" if parsed.grammar is None else await text.compile_grammar(parsed.grammar, prompts[0].begun)
        cache_salt = parsed.body.cache_salt or ""
        prompts = await hash_prompts(prompts, model.client.info, cache_salt, self._state.pool, adapter=model.cache_key)
        jobs = plan_jobs(parsed, prompts, text, limits, grammar)
        self._response_id = self._endpoint.id_prefix + (parsed.body.request_id or self._view.id)
        self._generation = Generation(
            model.client,
            jobs,
            sum(len(prompt.token_ids) for prompt in prompts),
            self._state.metrics_of(model.metrics_name),
            self._started_s,
            priority=parsed.body.priority or 0,
            user=self._state.access.user_of(self._request, parsed.body.user),
            cache_salt=cache_salt,
            timeout_s=self._state.limits.timeout_s,
        )
        self._generation.metrics.prompt_tokens.inc(self._generation.num_prompt_tokens)
        self._span.set(_request_attributes(parsed, jobs[0].params))
        facts = ResponseFacts(
            self._response_id,
            int(time.time()),
            model.name,
            text.vocabulary,
            parsed.num_logprobs,
            parsed.body.prompt_logprobs,
            bool(parsed.body.return_token_ids),
            sampling_defaults=limits.defaults,
        )
        return parsed, self._endpoint.format(facts)

    async def _body_for_plugins(self) -> Mapping[str, Any]:
        assert self._view.body is not None
        replaced = await self._state.hooks.request_received(self._view)
        if replaced is None:
            return self._view.body
        self._view = dataclasses.replace(self._view, body=replaced, model=_text_or_none(replaced.get("model")))
        return replaced

    def _note_ignored(self, names: list[str]) -> None:
        if names:
            self._ignored = names
            more = f" and {len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else ""
            told = ", ".join(map(shown, names[:_MAX_NAMES_SHOWN])) + more
            logger.info("request id=%s ignored fields: %s", self._view.id, told)

    @property
    def _headers(self) -> dict[str, str]:
        if not self._ignored:
            return {}
        names = ",".join(self._ignored[:_MAX_NAMES_SHOWN])[:500]
        return {"x-plugserve-ignored-fields": _NOT_IN_HEADERS.sub("?", names)}

    # ---- plain

    async def _answer(self, format: AnswerFormat) -> HTTPResponse:
        generation = self._ready_generation
        pieces = {job.choice.index: Piece() for job in generation.jobs}
        async with aclosing(generation.batches()) as batches:
            async for batch in batches:
                for choice, piece in batch:
                    pieces[choice.index].extend(piece)
        answers = [
            Answer(job.choice.index, pieces[job.choice.index], job.prompt_token_ids, job.choice.prompt_logprobs)
            for job in generation.jobs
        ]
        body = format.answer(answers, generation.usage)
        return HTTPResponse(body, headers=self._headers, content_type=JSON_TYPE)

    # ---- stream

    async def _stream(self, parsed: Parsed, format: AnswerFormat) -> Exception | None:
        """Send events as they come. Raises before the first one; afterwards an error becomes an event and is
        returned."""
        generation = self._ready_generation
        events = self._endpoint.event_stream(format, parsed, generation)
        response: BaseHTTPResponse | None = None
        error: Exception | None = None
        try:
            async with aclosing(generation.batches()) as batches:
                async for batch in batches:
                    data = events.events(batch)
                    if generation.is_finished:
                        data += await events.ending(generation.usage)
                    if response is None:
                        response = await self._open_stream()
                    if data:
                        await response.send(data)
        except Exception as failure:
            if response is None:
                raise
            error = failure
            await response.send(events.failure(failure))
        assert response is not None
        await response.eof()  # type: ignore[attr-defined]
        return error

    async def _open_stream(self) -> BaseHTTPResponse:
        headers = {**_STREAM_HEADERS, **self._headers}
        response: BaseHTTPResponse = await self._request.respond(headers=headers, content_type="text/event-stream")
        return response

    # ---- the end

    @property
    def _ready_generation(self) -> Generation:
        assert self._generation is not None
        return self._generation

    def _finish_reasons(self) -> list[str]:
        jobs = self._generation.jobs if self._generation is not None else []
        return [job.choice.finish_reason or "abort" for job in jobs] or ["abort"]

    async def _fail(self, error: Exception) -> None:
        log_if_ours(error, self._view.id)
        await self._state.hooks.observe_async("plugserve_error", request=self._view, error=error)
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
        if error is None:
            self._state.in_background(
                self._state.hooks.observe_async(
                    "plugserve_request_finished", request=self._view, usage=usage, timings=timings
                )
            )

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


def _request_attributes(parsed: Parsed, params: Any) -> dict[str, Any]:
    body = parsed.body
    return {
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": float(params.top_k) if params.top_k else None,
        "gen_ai.request.presence_penalty": body.presence_penalty,
        "gen_ai.request.frequency_penalty": body.frequency_penalty,
        "gen_ai.request.seed": body.seed,
        "gen_ai.request.stop_sequences": body.stop_strings or None,
        "gen_ai.request.choice.count": body.n if (body.n or 1) != 1 else None,
        "gen_ai.output.type": "json" if parsed.grammar is not None and parsed.grammar.kind == "json" else "text",
    }


def model_name(body: Mapping[str, Any]) -> str | None:
    """The model that a body asks for, if any. Raises RequestError (400)."""
    name = body.get("model")
    if name is None or isinstance(name, str):
        return name
    raise RequestError(f"model: must be a string, got {type(name).__name__}", param="model")


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def json_object(request: Request, known: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The request's body as a JSON object; known where it has been read. Raises RequestError (415 or 400)."""
    media_type = (request.headers.get("content-type") or "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise RequestError(
            f"Content-Type must be application/json, got {media_type or 'none'}.",
            status=415,
            code="unsupported_media_type",
        )
    if known is not None:
        return known
    try:
        body = read_json(request.body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"The body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise RequestError(f"The body must be a JSON object, got {type(body).__name__}.", code="invalid_json")
    return body
