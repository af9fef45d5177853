"""The outputs of LLM, in vLLM's shapes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from plugserve.core.contracts.sampling import TokenLogprobs
from plugserve.core.errors import PlugserveError
from plugserve.server.pipeline.finish_reason import chat_finish_reason
from plugserve.server.pipeline.generation_api import Answer
from plugserve.server.text.detokenizer import Vocabulary
from plugserve.server.text.tool_calls import call_object, whole_calls


@dataclass(frozen=True, slots=True)
class Logprob:
    """rank counts from 1, the most likely token."""

    logprob: float
    rank: int
    decoded_token: str


TokenChoices = dict[int, Logprob]
"""By token id: the chosen token, and as many of the most likely ones as were asked for."""


@dataclass(slots=True)
class CompletionOutput:
    """One answer. text is what the answer of the same request over HTTP contains: thinking and tool calls of a chat are
    separated from it. finish_reason is "stop", "length" or "tool_calls"; stop_reason is the stop string or the stop
    token that the request named. logprobs has one entry for each of token_ids."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[TokenChoices] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] = field(default_factory=list)

    def finished(self) -> bool:
        """The answer has ended."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """One request. prompt is None for one that was given as token ids. A request that failed has error, no outputs,
    and finished False."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] = field(default_factory=list)
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = True
    prompt_logprobs: list[TokenChoices | None] | None = None
    num_cached_tokens: int = 0
    error: PlugserveError | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)


@dataclass(slots=True)
class EmbeddingRequestOutput:
    """One text's vector. A request that failed has error, an empty vector, and finished False."""

    request_id: str
    outputs: EmbeddingOutput
    prompt_token_ids: list[int] = field(default_factory=list)
    finished: bool = True
    error: PlugserveError | None = None


def completion_output(answer: Answer, vocabulary: Vocabulary, num_logprobs: int | None) -> CompletionOutput:
    """answer as a program reads it, with num_logprobs of the most likely tokens; None for no logprobs."""
    piece = answer.piece
    output = CompletionOutput(
        answer.index,
        piece.text,
        piece.token_ids,
        finish_reason=chat_finish_reason(piece),
        stop_reason=piece.stop_reason,
    )
    if piece.parsed is not None:
        output.text = piece.parsed.content
        output.reasoning = piece.parsed.reasoning or None
        output.tool_calls = [call_object(call) for call in whole_calls(piece.parsed.calls)]
    if num_logprobs is not None:
        entries = [entry for entry in piece.logprobs if entry is not None]
        output.logprobs = [token_choices(entry, vocabulary, num_logprobs) for entry in entries]
        output.cumulative_logprob = sum(entry.logprob for entry in entries)
    return output


def token_choices(entry: TokenLogprobs, vocabulary: Vocabulary, count: int) -> TokenChoices:
    """The count most likely tokens and the chosen one, most likely first."""
    tops = zip(entry.top_ids[:count], entry.top_logprobs[:count], strict=True)
    found = {
        token_id: Logprob(logprob, rank, vocabulary.token_text(token_id))
        for rank, (token_id, logprob) in enumerate(tops, start=1)
    }
    chosen = Logprob(entry.logprob, entry.rank, vocabulary.token_text(entry.token_id))
    found.setdefault(entry.token_id, chosen)
    return found
