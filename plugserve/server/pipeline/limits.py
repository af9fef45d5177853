"""The limits of a model and its server for one request, and the checks of token counts and ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from plugserve.core.errors import RequestError

COMPLETIONS_NEW_TOKENS: Final = 16
_CHARACTERS_PER_TOKEN: Final = 256  # at most; longer texts are refused before they are tokenised
"""OpenAI's max_tokens of a completion that names none."""


@dataclass(frozen=True, slots=True)
class Limits:
    """defaults: sampling defaults of the model (generation_config.json). max_prompt_tokens: the server's own limit,
    None where the context is the only one. trusts_templates: a body may bring its own chat template. max_new_tokens:
    longer answers are cut off there."""

    max_model_len: int
    vocab_size: int
    max_logprobs: int
    defaults: Mapping[str, Any] = field(default_factory=dict)
    max_prompt_tokens: int | None = None
    trusts_templates: bool = False
    max_new_tokens: int | None = None

    def longest_prompt(self, *, is_pooled: bool = False) -> int:
        """Tokens of the longest prompt that may pass; the context must have room for one more token, unless the prompt
        is pooled."""
        room = self.max_model_len if is_pooled else self.max_model_len - 1
        return room if self.max_prompt_tokens is None else min(self.max_prompt_tokens, room)


def most_characters(limits: Limits) -> int:
    """Characters beyond which a text has more tokens than any prompt may have."""
    return (limits.longest_prompt() + 1) * _CHARACTERS_PER_TOKEN


def check_num_characters(num_characters: int, limits: Limits, field_name: str) -> None:
    """Raises RequestError (400) for a text that is too long for any tokenizer, before it is rendered and tokenised."""
    longest = limits.longest_prompt()
    if num_characters > most_characters(limits):
        raise RequestError(
            f"This server takes prompts of at most {longest} tokens (the model's maximum context length "
            f"is {limits.max_model_len} tokens), but the prompt has {num_characters} characters; shorten it.",
            code="context_length_exceeded",
            param=field_name,
        )


def num_new_tokens(
    asked: int | None,
    num_prompt_tokens: int,
    limits: Limits,
    *,
    default: int | None,
    field_name: str,
    prompt_field: str,
) -> int:
    """The number of tokens to generate at most. default is the API's, for a request without max_tokens:
    COMPLETIONS_NEW_TOKENS for completions; None, everywhere else, takes all that the context and
    limits.max_new_tokens leave. Raises
    RequestError (400) with both numbers when the prompt or the sum is too long."""
    check_prompt_length(num_prompt_tokens, limits, prompt_field)
    left = limits.max_model_len - num_prompt_tokens
    most = left if limits.max_new_tokens is None else min(left, limits.max_new_tokens)
    if asked is None:
        return most if default is None else min(default, most)
    if asked > left:
        raise RequestError(
            f"This model's maximum context length is {limits.max_model_len} tokens, but {num_prompt_tokens + asked} "
            f"tokens were requested ({num_prompt_tokens} in the prompt, {asked} to be generated); "
            f"lower {field_name} to at most {left} or shorten the prompt.",
            code="context_length_exceeded",
            param=field_name,
        )
    return min(asked, most)


def check_prompt_length(num_prompt_tokens: int, limits: Limits, field_name: str, *, is_pooled: bool = False) -> None:
    """Raises RequestError (400) for a prompt that leaves no room for a single token (unless it is pooled), or that is
    longer than the server allows."""
    if num_prompt_tokens <= limits.longest_prompt(is_pooled=is_pooled):
        return
    if num_prompt_tokens < limits.max_model_len + is_pooled:
        raise RequestError(
            f"This server takes prompts of at most {limits.max_prompt_tokens} tokens, but the prompt has "
            f"{num_prompt_tokens}; shorten it.",
            code="prompt_too_long",
            param=field_name,
        )
    raise RequestError(
        f"This model's maximum context length is {limits.max_model_len} tokens, but the prompt alone has "
        f"{num_prompt_tokens} tokens; shorten it.",
        code="context_length_exceeded",
        param=field_name,
    )


def check_token_ids(token_ids: list[int], vocab_size: int, field_name: str) -> None:
    """Raises RequestError (400) for an id that the model lacks."""
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise RequestError(
                f"{field_name}: token ids must be from 0 to {vocab_size - 1}, got {token_id}", param=field_name
            )


def check_num_logprobs(field_name: str, count: int | None, limits: Limits) -> None:
    """Raises RequestError (400) for more logprobs than the server gives."""
    if count is not None and count > limits.max_logprobs:
        raise RequestError(
            f"{field_name}: must be at most {limits.max_logprobs} on this server, got {count}", param=field_name
        )
