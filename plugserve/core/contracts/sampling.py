"""Sampling parameters of a sequence, and logprobs of a token."""

from __future__ import annotations

from typing import Final

import msgspec

POOLINGS: Final = ("mean", "last")


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Sampling parameters of one sequence. Every default means "off".

    top_k 0, top_p 1.0, min_p 0.0 keep all tokens. seed keys a stateless random number generator together with the
    position, so equal seeds give equal draws whatever else runs. num_logprobs: None returns none, 0 the chosen
    token's alone, N also the N most likely ones; likewise num_prompt_logprobs for the prompt's tokens.
    Logprobs are those of the model's raw distribution, before temperature, penalties and filters. grammar is
    llguidance's text form of what the answer must match, "" for anything. bad_words are token sequences that are never
    completed; allowed_token_ids, unless empty, are all that may be drawn. pooling "mean" or "last" asks for one vector
    instead of tokens, pooled over the prompt's last hidden states; max_tokens is 0 then. Encoders take
    further poolings, "model" for their own; second_start is the index of the token that begins a pair's second text.
    """

    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    grammar: str = ""
    bad_words: tuple[tuple[int, ...], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    pooling: str = ""
    second_start: int = 0


class TokenLogprobs(msgspec.Struct, array_like=True):
    """The chosen token's logprob and rank (1 = most likely), and the top tokens, most likely first."""

    token_id: int
    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]
