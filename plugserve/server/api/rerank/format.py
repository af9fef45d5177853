"""Scores as Jina's and Cohere's rerank answers, and as vLLM's scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from plugserve.core.contracts.requests import RequestUsage
from plugserve.core.model_files.encoder_files import SCORE
from plugserve.server.api.embeddings.format import Vector, normalised
from plugserve.server.api.rerank.body import RerankBody
from plugserve.server.pipeline.generation_api import Answer, ResponseFacts
from plugserve.server.pipeline.generation_request import TextPairs


def scores_of(answers: Sequence[Answer], facts: ResponseFacts) -> list[float]:
    """The score of each pair: a cross-encoder's, else the cosine of the two vectors."""
    pairs = facts.request.prompts
    assert isinstance(pairs, TextPairs)
    vectors: list[Vector] = [np.frombuffer(answer.piece.vector, dtype="<f4") for answer in answers]
    if facts.encoder is not None and facts.encoder.task == SCORE:
        return [float(vector[0]) for vector in vectors]
    unit = [normalised(vector) for vector in vectors]
    firsts, seconds = unit[: len(pairs.firsts)], unit[len(pairs.firsts) :]
    paired = firsts * len(seconds) if len(firsts) == 1 else firsts
    return [float(first @ second) for first, second in zip(paired, seconds, strict=True)]


class RerankWriter:
    """The documents' scores, highest first. returns_texts: each with its text, unless the body says otherwise.
    is_cohere: usage in Cohere's form."""

    def __init__(self, facts: ResponseFacts, asked: RerankBody, *, is_cohere: bool) -> None:
        self._facts = facts
        self._asked = asked
        self._is_cohere = is_cohere
        self._returns_texts = not is_cohere if asked.return_documents is None else asked.return_documents

    async def answer(self, answers: Sequence[Answer], usage: RequestUsage) -> bytes:
        """The whole plain response."""
        scores = scores_of(answers, self._facts)
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[: self._asked.top_n]
        body: dict[str, Any] = {"id": self._facts.id, "results": [self._result(i, scores[i]) for i in order]}
        count = usage.num_prompt_tokens
        if self._is_cohere:
            body["meta"] = {
                "api_version": {"version": "2"},
                "billed_units": {"search_units": 1},
                "tokens": {"input_tokens": count},
            }
        else:
            body |= {"model": self._facts.model, "usage": {"prompt_tokens": count, "total_tokens": count}}
        return orjson.dumps(body)

    def _result(self, index: int, score: float) -> dict[str, Any]:
        result: dict[str, Any] = {"index": index, "relevance_score": score}
        if self._returns_texts:
            result["document"] = {"text": self._asked.texts[index]}
        return result


class ScoreWriter:
    """The scores of pairs, in their order."""

    def __init__(self, facts: ResponseFacts) -> None:
        self._facts = facts

    async def answer(self, answers: Sequence[Answer], usage: RequestUsage) -> bytes:
        """The whole plain response."""
        count = usage.num_prompt_tokens
        body = {
            "id": self._facts.id,
            "object": "list",
            "created": self._facts.created,
            "model": self._facts.model,
            "data": [
                {"index": index, "object": "score", "score": score}
                for index, score in enumerate(scores_of(answers, self._facts))
            ],
            "usage": {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0},
        }
        return orjson.dumps(body)
