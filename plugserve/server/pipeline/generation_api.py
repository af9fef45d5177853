"""The interface of an API: converts its body to a GenerationRequest, and writes its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from plugserve.core.contracts.requests import RequestUsage
from plugserve.core.contracts.sampling import TokenLogprobs
from plugserve.core.errors import RequestError
from plugserve.core.model_files.encoder_files import EncoderFacts
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
    """The facts about a request that writers need. model: the served model's name; sampling_defaults: the model's
    own. encoder: of an encoder."""

    id: str
    created: int
    model: str
    vocabulary: Vocabulary
    request: GenerationRequest
    sampling_defaults: Mapping[str, Any]
    encoder: EncoderFacts | None = None

    def token_name(self, token_id: int) -> str:
        """A token as logprobs show it."""
        return f"token_id:{token_id}" if self.request.names_token_ids else self.vocabulary.token_text(token_id)


class PlainWriter(Protocol):
    """Writes a whole answer."""

    async def answer(self, answers: Sequence[Answer], usage: RequestUsage) -> bytes:
        """The body of the plain response."""


class StreamWriter(Protocol):
    """Writes an answer as server-sent events."""

    def events(self, batch: Sequence[tuple[Choice, Piece]]) -> bytes:
        """The events that one wake-up's pieces give; may be b""."""

    async def ending(self, usage: RequestUsage) -> bytes:
        """The events after the last piece."""

    def failure(self, error: Exception) -> bytes:
        """The events that end a failed stream."""


def no_stream(facts: ResponseFacts, generation: Generation) -> StreamWriter:
    """Refuses streams, for APIs without them."""
    raise RequestError("stream: answers of this kind are not streamed; leave it out.", param="stream")


@dataclass(frozen=True, slots=True)
class CheckedBody:
    """A checked body, and the writers of its answer. ignored_fields: names that the API doesn't have."""

    request: GenerationRequest
    ignored_fields: list[str]
    plain: Callable[[ResponseFacts], PlainWriter]
    stream: Callable[[ResponseFacts, Generation], StreamWriter] = no_stream


class GenerationApi(Protocol):
    """One API that generates. operation is the GenAI convention's word for a span."""

    operation: str
    id_prefix: str

    async def read(self, body: Mapping[str, Any], owner: str) -> CheckedBody:
        """Check a body. owner is the sender's tenant, for stored responses. Raises RequestError (400)."""
