"""Prompts become vectors: all of one request at the same time. Knows no JSON and no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.errors import EngineUnavailableError, RequestError
from plugserve.server.api.embeddings.body import EmbeddingsBody, split_inputs
from plugserve.server.pipeline.prompts import encode_text
from plugserve.server.pipeline.sampling_params import Limits, check_token_ids
from plugserve.server.worker.engine_client import EngineClient, TokenStream
from plugserve.server.worker.served_models import TextSide

Vector = npt.NDArray[np.float32]


@dataclass(slots=True)
class Embedded:
    """Vectors in the order of their prompts; queue_s is the longest wait of any."""

    vectors: list[Vector]
    queue_s: float


async def input_token_ids(body: EmbeddingsBody, text: TextSide, limits: Limits, pool: Executor) -> list[list[int]]:
    """The token ids of every input, checked against the model's limits. Raises RequestError (400)."""
    prompts: list[list[int]] = []
    with_special = body.add_special_tokens is not False
    for entry in split_inputs(body.input):
        if isinstance(entry, str):
            entry = await encode_text(entry, text, limits, pool, "input", add_special_tokens=with_special)
        check_token_ids(entry, limits.vocab_size, "input")
        if not entry:
            raise RequestError("input: must not be empty.", param="input")
        if len(entry) > limits.max_model_len:
            raise RequestError(
                f"This model's maximum context length is {limits.max_model_len} tokens, but an input has "
                f"{len(entry)} tokens; shorten it.",
                code="context_length_exceeded",
                param="input",
            )
        prompts.append(entry)
    return prompts


async def embed(
    client: EngineClient,
    prompts: Sequence[list[int]],
    *,
    pooling: str,
    is_normalised: bool,
    priority: int = 0,
    user: str = "",
) -> Embedded:
    """Ask the engine for every prompt's vector. Cancelling it aborts what still runs. Raises EngineError."""
    params = SamplingParams(max_tokens=0, seed=0, pooling=pooling)
    waker = asyncio.Event()
    streams: list[TokenStream] = []
    found: dict[int, bytes] = {}
    queue_s = 0.0
    try:
        for prompt in prompts:
            streams.append(client.generate(prompt, params, priority=priority, user=user, waker=waker))
        while len(found) < len(streams):
            waker.clear()
            for index, stream in enumerate(streams):
                delta = stream.take() if index not in found else None
                if delta is not None:
                    found[index] = _vector_of(delta.pooled)
                    queue_s = max(queue_s, delta.queue_s or 0.0)
            if len(found) < len(streams):
                await waker.wait()
    finally:
        for stream in streams:
            stream.close()
    vectors = [np.frombuffer(found[index], dtype="<f4") for index in range(len(streams))]
    return Embedded([_normalised(vector) for vector in vectors] if is_normalised else vectors, queue_s)


def _vector_of(pooled: bytes | None) -> bytes:
    if pooled is None:  # the server stops, and the engine ended the sequence without one
        raise EngineUnavailableError("The server is shutting down; send the request to another one.")
    return pooled


def _normalised(vector: Vector) -> Vector:
    length = float(np.linalg.norm(vector))
    return vector / np.float32(length) if length > 0 else vector
