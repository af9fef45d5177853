"""The bodies of POST /rerank (Jina's and Cohere's form) and of POST /score (vLLM's)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from plugserve.core.errors import RequestError
from plugserve.server.api.completions.body import MAX_PROMPTS
from plugserve.server.api.generation_body import Priority, RequestId, Truncation
from plugserve.server.api.json_body import validated
from plugserve.server.pipeline.generation_request import FieldNames, GenerationRequest, TextPairs


class _PairBody(BaseModel):
    """The fields that both share. truncate_prompt_tokens cuts longer pairs, -1 to what fits."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: str | None = None
    truncate_prompt_tokens: Truncation | None = None
    user: str | None = None
    priority: Priority | None = None
    request_id: RequestId | None = None

    def _request(self, pairs: TextPairs, field: str, truncation: int | None) -> GenerationRequest:
        return GenerationRequest(
            prompts=pairs,
            names=FieldNames(field),
            model=self.model,
            request_id=self.request_id,
            pooling="model",
            truncate_prompt_tokens=truncation,
            priority=self.priority or 0,
            user=self.user or "",
        )


class Document(BaseModel):
    """A document as Jina's and Cohere's clients may send it."""

    model_config = ConfigDict(strict=True, extra="ignore")

    text: str


class RerankBody(_PairBody):
    """top_n: the most relevant documents that are returned, None for all. max_tokens_per_doc: longer documents are
    cut (Cohere's)."""

    query: str
    documents: Annotated[list[str | Document], Field(min_length=1, max_length=MAX_PROMPTS)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = None

    @property
    def texts(self) -> list[str]:
        return [one if isinstance(one, str) else one.text for one in self.documents]

    def request(self, *, cuts: bool) -> GenerationRequest:
        """cuts: long documents are cut unless the body says otherwise, as Cohere's API does."""
        truncation = -1 if cuts and self.truncate_prompt_tokens is None else self.truncate_prompt_tokens
        return self._request(TextPairs([self.query], self.texts, self.max_tokens_per_doc), "documents", truncation)


Texts = str | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]


class ScoreBody(_PairBody):
    """text_1 with each of text_2, or text by text where both are lists of one length."""

    text_1: Texts
    text_2: Texts

    @property
    def pairs(self) -> TextPairs:
        """Raises RequestError (400) for lists that don't pair."""
        firsts, seconds = (one if isinstance(one, list) else [one] for one in (self.text_1, self.text_2))
        if len(firsts) not in (1, len(seconds)):
            raise RequestError(
                f"text_2: must have as many texts as text_1 ({len(firsts)}), got {len(seconds)}", param="text_2"
            )
        return TextPairs(firsts, seconds)

    def request(self) -> GenerationRequest:
        return self._request(self.pairs, "text_2", self.truncate_prompt_tokens)


def parse_rerank(body: Mapping[str, Any]) -> tuple[RerankBody, list[str]]:
    """body checked, and the names of unrecognised fields. Raises RequestError (400)."""
    return validated(RerankBody, body), sorted(body.keys() - RerankBody.model_fields.keys())


def parse_score(body: Mapping[str, Any]) -> tuple[ScoreBody, list[str]]:
    """As parse_rerank."""
    return validated(ScoreBody, body), sorted(body.keys() - ScoreBody.model_fields.keys())
