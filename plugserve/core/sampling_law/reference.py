"""The law of sampling in numpy and float64, one row at a time: what every backend's sampler is tested against.

adjust: repetition penalty, presence and frequency penalties, logit_bias, min_tokens, allowed tokens, bad words, a
grammar's mask, in this order. weigh: greedy (temperature 0), or temperature, top-k, top-p, min-p. draw: the cumulative
sum is inverted at a number that is a hash of (seed, position) - over the whole vocabulary in order of ids, and with
top-k or top-p over the best tokens in falling order, equals by id. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.rows.row_table import DrawKind, RowRule, draw_kind
from plugserve.core.sampling_law.seeded_numbers import uniform

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Shares:
    """The candidates of a draw: token ids in the order of the cumulative sum, and their shares, not normalised."""

    ids: np.ndarray[Any, np.dtype[np.int64]]
    shares: Floats


def next_token(
    logits: np.ndarray[Any, Any],
    rule: RowRule,
    known: Sequence[int],
    mask: np.ndarray[Any, np.dtype[np.bool_]] | None = None,
) -> int:
    """The token after the known ones (the row's prompt, and what was generated) by logits [V]; mask [V] is True for
    tokens that a grammar allows."""
    adjusted = adjust(logits, rule, known, mask)
    return draw(weigh(adjusted, rule.params), uniform(rule.params.seed, len(known)))


def adjust(
    logits: np.ndarray[Any, Any],
    rule: RowRule,
    known: Sequence[int],
    mask: np.ndarray[Any, np.dtype[np.bool_]] | None = None,
) -> Floats:
    """logits [V] after penalties, bias and bans."""
    params, values = rule.params, np.array(logits, dtype=np.float64)
    _penalise(values, params, np.array(known, dtype=np.int64), rule.num_prompt_tokens)
    for token, bias in (params.logit_bias or {}).items():
        values[token] += bias
    if len(known) - rule.num_prompt_tokens < params.min_tokens:
        values[list(rule.stop_ids)] = -np.inf
    if params.allowed_token_ids:
        is_allowed = np.zeros(len(values), dtype=bool)
        is_allowed[list(params.allowed_token_ids)] = True
        values[~is_allowed] = -np.inf
    for word in params.bad_words:
        if len(word) <= len(known) + 1 and list(known[len(known) + 1 - len(word) :]) == list(word[:-1]):
            values[word[-1]] = -np.inf
    if mask is not None:
        values[~mask] = -np.inf
        if values.max() == -np.inf:  # another rule bans all that the grammar allows: the grammar wins
            values[mask] = 0.0
    return values


def _penalise(
    values: Floats, params: SamplingParams, known: np.ndarray[Any, np.dtype[np.int64]], num_prompt_tokens: int
) -> None:
    seen = np.unique(known)
    penalty = params.repetition_penalty
    values[seen] = np.where(values[seen] > 0, values[seen] / penalty, values[seen] * penalty)
    generated, counts = np.unique(known[num_prompt_tokens:], return_counts=True)
    values[generated] -= params.frequency_penalty * counts + params.presence_penalty


def weigh(adjusted: Floats, params: SamplingParams) -> Shares:
    """The shares of adjusted logits [V]."""
    ids, kind = np.arange(len(adjusted)), draw_kind(params, len(adjusted))
    if kind is DrawKind.GREEDY:
        return Shares(ids[[adjusted.argmax()]], np.ones(1))
    scaled = adjusted / params.temperature
    if kind in (DrawKind.TOP_K, DrawKind.TOP_P):
        ids = np.argsort(-scaled, kind="stable")
        if kind is DrawKind.TOP_K:
            ids = ids[: params.top_k]
    weights = np.exp(scaled[ids] - scaled.max())
    shares = weights / weights.sum()
    best = shares.max()
    if kind in (DrawKind.TOP_K, DrawKind.TOP_P):
        shares = shares * (shares.cumsum() - shares < params.top_p)
    return Shares(ids, shares * (shares >= params.min_p * best))


def distribution(weighed: Shares, vocab_size: int) -> Floats:
    """The shares by token id [V], which sum to 1."""
    probs = np.zeros(vocab_size)
    probs[weighed.ids] = weighed.shares / weighed.shares.sum()
    return probs


def draw(weighed: Shares, number: float) -> int:
    """The token that number in [0, 1) selects; never one whose share is 0."""
    cumulative = weighed.shares.cumsum()
    place = int(np.searchsorted(cumulative, number * cumulative[-1], side="right"))
    return int(weighed.ids[min(place, int(np.flatnonzero(weighed.shares)[-1]))])
