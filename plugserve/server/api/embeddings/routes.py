"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import orjson
from sanic import Request, Sanic
from sanic.response import HTTPResponse

from plugserve.core.contracts.requests import RequestTimings, RequestUsage, RequestView
from plugserve.server.api.embeddings.body import EmbeddingsBody, parse_embeddings
from plugserve.server.api.error_responses import JSON_TYPE
from plugserve.server.operations.trace_recorder import RecordedSequence
from plugserve.server.pipeline.embedding import Embedded, Vector, embed, input_token_ids
from plugserve.server.pipeline.exchange import json_object, model_name
from plugserve.server.worker.served_models import ServedModel
from plugserve.server.worker.server_state import ServerState, state_of


def add_routes(app: Sanic[Any, Any]) -> None:
    app.add_route(embeddings, "/v1/embeddings", methods=["POST"])


async def embeddings(request: Request) -> HTTPResponse:
    """The pooled hidden states of each input. Ends once: answered, failed or left by its client."""
    state, view = state_of(request), request.ctx.view
    started_s = time.perf_counter()
    span = state.tracer.start("embeddings", view.model or state.models.default_name, view.headers)
    try:
        with state.in_flight():
            await state.wait_until_started()
            view, body = await _body(request, state)
            model = state.models.find(model_name(body))
            asked = parse_embeddings(body)
            prompts = await input_token_ids(asked, model.ready_text, model.limits(state.max_logprobs), state.pool)
            usage = RequestUsage(sum(map(len, prompts)), 0)
            state.metrics_of(model.metrics_name).prompt_tokens.inc(usage.num_prompt_tokens)
            user, sent_s = state.access.user_of(request, asked.user), time.perf_counter()
            embedded = await embed(
                model.client,
                prompts,
                pooling=asked.pooling or "mean",
                is_normalised=asked.normalize is not False,
                priority=asked.priority or 0,
                user=user,
            )
    except asyncio.CancelledError:
        span.finish({})
        raise
    except Exception as error:
        span.finish({}, error)
        await state.hooks.observe_async("plugserve_error", request=view, error=error)
        raise
    state.recorder.note(_recorded(model, user, asked, prompts, sent_s))
    timings = RequestTimings(time.perf_counter() - started_s, embedded.queue_s, finish_reason="stop")
    span.finish({"gen_ai.response.model": model.name, "gen_ai.usage.input_tokens": usage.num_prompt_tokens})
    _note_end(state, model, dataclasses.replace(view, model=model.name), usage, timings)
    return HTTPResponse(orjson.dumps(_answer(asked, model, embedded, usage)), content_type=JSON_TYPE)


def _recorded(
    model: ServedModel, user: str, asked: EmbeddingsBody, prompts: list[list[int]], sent_s: float
) -> list[RecordedSequence]:
    end_s, priority = time.perf_counter(), asked.priority or 0
    return [
        RecordedSequence(model.client.model, user, priority, prompt, 0, 0, sent_s, end_s, finish="stop")
        for prompt in prompts
    ]


async def _body(request: Request, state: ServerState) -> tuple[RequestView, Mapping[str, Any]]:
    """The body, as plugins want it."""
    body = json_object(request, request.ctx.view.body)
    view = dataclasses.replace(request.ctx.view, body=body)
    replaced = await state.hooks.request_received(view)
    return (view, body) if replaced is None else (dataclasses.replace(view, body=replaced), replaced)


def _note_end(
    state: ServerState, model: ServedModel, view: RequestView, usage: RequestUsage, timings: RequestTimings
) -> None:
    metrics = state.metrics_of(model.metrics_name)
    metrics.finished("stop", total_s=timings.total_s, queue_s=timings.queue_s, decode_s_per_token=None)
    metrics.sizes(usage.num_prompt_tokens, 0)
    told = state.hooks.observe_async("plugserve_request_finished", request=view, usage=usage, timings=timings)
    state.in_background(told)


def _answer(asked: EmbeddingsBody, model: ServedModel, embedded: Embedded, usage: RequestUsage) -> dict[str, Any]:
    write = _base64 if asked.encoding_format == "base64" else _floats
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": write(vector)}
            for index, vector in enumerate(embedded.vectors)
        ],
        "model": model.name,
        "usage": {"prompt_tokens": usage.num_prompt_tokens, "total_tokens": usage.num_prompt_tokens},
    }


def _floats(vector: Vector) -> list[float]:
    return list(vector.tolist())


def _base64(vector: Vector) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
