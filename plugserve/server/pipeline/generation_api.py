"""What an API declares: how its body becomes a GenerationRequest, and how its answers are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from plugserve.core.contracts.requests import RequestUsage
from plugserve.core.contracts.sampling import TokenLogprobs
from plugserve.core.errors import RequestError
from plugserve.server.pipeline.choice import Choice, Piece
from plugserve.server.pipeline.generation import Generation
from plugserve.server.pipeline.generation_request import GenerationRequest
from plugserve.server.text.detokenizer import Vocabulary


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished choice, whole."""

    index: int
    piece: Piece
    prompt_token_ids: list[int]
    prompt_logprobs: list[TokenLogprobs | None] | None


@dataclass(frozen=True, slots=True)
class ResponseFacts:
    """What writers need of a request. model: the served model's name; sampling_defaults: the model's own."""

    id: str
    created: int
    model: str
    vocabulary: Vocabulary
    request: GenerationRequest
    sampling_defaults: Mapping[str, Any]


class PlainWriter(Protocol):
    """Writes a whole answer."""

    async def answer(self, answers: Sequence[Answer], usage: RequestUsage) -> bytes:
        """The body of the plain response."""


class StreamWriter(Protocol):
    """Writes an answer as server-sent events."""

    def events(self, batch: Sequence[tuple[Choice, Piece]]) -> bytes:
        """The events that one wake-up's pieces give; may be b""."""

    async def ending(self, usage: RequestUsage) -> bytes:
        """What comes after the last piece."""

    def failure(self, error: Exception) -> bytes:
        """The end of a stream that breaks off."""


def no_stream(facts: ResponseFacts, generation: Generation) -> StreamWriter:
    """For APIs without streams."""
    raise RequestError("stream: answers of this kind are not streamed; leave it out.", param="stream")


@dataclass(frozen=True, slots=True)
class CheckedBody:
    """A body that was understood, and what writes its answer. ignored_fields: names that the API doesn't have."""

    request: GenerationRequest
    ignored_fields: list[str]
    plain: Callable[[ResponseFacts], PlainWriter]
    stream: Callable[[ResponseFacts, Generation], StreamWriter] = no_stream


class GenerationApi(Protocol):
    """One API that generates. operation is the GenAI convention's word for a span."""

    operation: str
    id_prefix: str

    async def read(self, body: Mapping[str, Any], owner: str) -> CheckedBody:
        """Check a body. owner is what a stored response of the sender is kept under. Raises RequestError (400)."""
