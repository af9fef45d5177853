"""Vectors as OpenAI's embeddings."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from plugserve.core.contracts.requests import RequestUsage
from plugserve.core.model_files.encoder_files import EncoderFacts
from plugserve.server.api.embeddings.body import EmbeddingsBody
from plugserve.server.pipeline.generation_api import Answer, ResponseFacts

Vector = npt.NDArray[np.float32]


class EmbeddingsWriter:
    """The list of vectors, in the order of their inputs."""

    def __init__(self, facts: ResponseFacts, asked: EmbeddingsBody) -> None:
        self._facts = facts
        self._is_normalised = _normalises(facts.encoder) if asked.normalize is None else asked.normalize
        self._num_dimensions = asked.dimensions
        self._is_base64 = asked.encoding_format == "base64"

    async def answer(self, answers: Sequence[Answer], usage: RequestUsage) -> bytes:
        """The whole plain response."""
        count = usage.num_prompt_tokens
        body = {
            "object": "list",
            "data": [self._entry(answer) for answer in answers],
            "model": self._facts.model,
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }
        return orjson.dumps(body)

    def _entry(self, answer: Answer) -> dict[str, Any]:
        vector: Vector = np.frombuffer(answer.piece.vector, dtype="<f4")[: self._num_dimensions]
        if self._is_normalised:
            vector = normalised(vector)
        written: str | list[float] = vector.tolist()
        if self._is_base64:
            written = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        return {"object": "embedding", "index": answer.index, "embedding": written}


def _normalises(encoder: EncoderFacts | None) -> bool:
    """Vectors are scaled to length 1 unless an encoder's files leave that out."""
    return encoder is None or encoder.normalizes is not False


def normalised(vector: Vector) -> Vector:
    """vector scaled to length 1; zeros stay zeros."""
    length = float(np.linalg.norm(vector))
    return vector / np.float32(length) if length > 0 else vector
