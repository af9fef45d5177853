"""A body's sampling fields become SamplingParams, checked against the model's limits. Knows nothing of text."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.errors import RequestError
from plugserve.server.api.generation_body import GenerationBody, shown


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model and its server allow. defaults: sampling defaults of the model (generation_config.json).
    max_prompt_tokens: the server's own limit, None where the context is the only one. trusts_templates: a body may
    bring its own chat template."""

    max_model_len: int
    vocab_size: int
    max_logprobs: int
    defaults: Mapping[str, Any] = field(default_factory=dict)
    max_prompt_tokens: int | None = None
    trusts_templates: bool = False

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt that may pass; the context must have room for one more token."""
        if self.max_prompt_tokens is None:
            return self.max_model_len - 1
        return min(self.max_prompt_tokens, self.max_model_len - 1)


def sampling_params(
    body: GenerationBody,
    limits: Limits,
    *,
    max_tokens: int,
    num_logprobs: int | None,
    num_prompt_logprobs: int | None,
    bad_words: tuple[tuple[int, ...], ...] = (),
) -> SamplingParams:
    """Checked parameters; a missing seed is drawn at random. Raises RequestError (400) that names the field."""
    _check_logprobs("top_logprobs" if hasattr(body, "top_logprobs") else "logprobs", num_logprobs, limits)
    _check_logprobs("prompt_logprobs", num_prompt_logprobs, limits)
    if body.min_tokens is not None and body.min_tokens > max_tokens:
        raise RequestError(
            f"min_tokens: must not be above max_tokens ({max_tokens}), got {body.min_tokens}", param="min_tokens"
        )
    return SamplingParams(
        max_tokens=max_tokens,
        seed=body.seed if body.seed is not None else random.getrandbits(63),
        temperature=float(_chosen(body, limits, "temperature", 1.0)),
        top_k=max(0, int(_chosen(body, limits, "top_k", 0))),
        top_p=float(_chosen(body, limits, "top_p", 1.0)),
        min_p=float(_chosen(body, limits, "min_p", 0.0)),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=float(_chosen(body, limits, "repetition_penalty", 1.0)),
        logit_bias=_logit_bias(body.logit_bias, limits.vocab_size),
        min_tokens=body.min_tokens or 0,
        stop_token_ids=_stop_token_ids(body.stop_token_ids, limits.vocab_size),
        ignore_eos=bool(body.ignore_eos),
        num_logprobs=num_logprobs,
        num_prompt_logprobs=num_prompt_logprobs,
        bad_words=bad_words,
        allowed_token_ids=_allowed_token_ids(body.allowed_token_ids, bad_words, limits.vocab_size),
    )


def bad_word_tokens(words: Sequence[str], encode: Callable[..., list[int]]) -> tuple[tuple[int, ...], ...]:
    """Each word as token sequences: at the start of a line and after a space, as most vocabularies tell them apart."""
    spellings = dict.fromkeys(text for word in words for text in (word, word.lstrip(), " " + word.lstrip()))
    found = (tuple(encode(text, add_special_tokens=False)) for text in spellings if text)
    return tuple(dict.fromkeys(tokens for tokens in found if tokens))


def nth_seed(seed: int, index: int) -> int:
    """The seed of choice number index: seed + index, wrapped to a signed 64-bit number."""
    return (seed + index + 2**63) % 2**64 - 2**63


def num_new_tokens(
    asked: int | None,
    num_prompt_tokens: int,
    limits: Limits,
    *,
    default: int | None,
    field_name: str,
    prompt_field: str,
) -> int:
    """How many tokens may be generated. default: for a client that names no limit, cut to what the context leaves;
    None takes all of that. Raises RequestError (400) with both numbers when the prompt or the sum is too long."""
    check_prompt_length(num_prompt_tokens, limits, prompt_field)
    left = limits.max_model_len - num_prompt_tokens
    if asked is None:
        return left if default is None else min(default, left)
    if asked > left:
        raise RequestError(
            f"This model's maximum context length is {limits.max_model_len} tokens, but {num_prompt_tokens + asked} "
            f"tokens were requested ({num_prompt_tokens} in the prompt, {asked} to be generated); "
            f"lower {field_name} to at most {left} or shorten the prompt.",
            code="context_length_exceeded",
            param=field_name,
        )
    return asked


def check_prompt_length(num_prompt_tokens: int, limits: Limits, field_name: str) -> None:
    """Raises RequestError (400) for a prompt that leaves no room for a single token, or that the server won't have."""
    if limits.longest_prompt < num_prompt_tokens < limits.max_model_len:
        raise RequestError(
            f"This server takes prompts of at most {limits.max_prompt_tokens} tokens, but the prompt has "
            f"{num_prompt_tokens}; shorten it.",
            code="prompt_too_long",
            param=field_name,
        )
    if num_prompt_tokens >= limits.max_model_len:
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


def _chosen(body: GenerationBody, limits: Limits, name: str, off: float) -> Any:
    value = getattr(body, name)
    if value is None:
        value = limits.defaults.get(name)
    return off if value is None else value


def _check_logprobs(name: str, count: int | None, limits: Limits) -> None:
    if count is not None and count > limits.max_logprobs:
        raise RequestError(f"{name}: must be at most {limits.max_logprobs} on this server, got {count}", param=name)


def _logit_bias(bias: Mapping[str, float] | None, vocab_size: int) -> dict[int, float] | None:
    if not bias:
        return None
    checked: dict[int, float] = {}
    for key, value in bias.items():
        try:
            token_id = int(key)
        except ValueError:
            raise RequestError(f"logit_bias: keys must be token ids, got {shown(key)}", param="logit_bias") from None
        check_token_ids([token_id], vocab_size, "logit_bias")
        checked[token_id] = float(value)
    return checked


def _allowed_token_ids(
    allowed: list[int] | None, bad_words: tuple[tuple[int, ...], ...], vocab_size: int
) -> tuple[int, ...]:
    check_token_ids(allowed or [], vocab_size, "allowed_token_ids")
    if allowed and set(allowed) <= {word[0] for word in bad_words if len(word) == 1}:
        raise RequestError("allowed_token_ids: bad_words leaves none of them.", param="allowed_token_ids")
    return tuple(dict.fromkeys(allowed or ()))


def _stop_token_ids(token_ids: list[int] | None, vocab_size: int) -> tuple[int, ...]:
    check_token_ids(token_ids or [], vocab_size, "stop_token_ids")
    return tuple(dict.fromkeys(token_ids or ()))
