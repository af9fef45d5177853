"""The law of speculative decoding: which drafts are kept, and which token follows them.

Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding", 2023, algorithm 1: a draft x
that was drawn from q is kept with probability min(1, p(x) / q(x)) under the target's p; after the first that isn't, a
token is drawn from norm(max(0, p - q)), and after all were kept, from the next p. What comes out is distributed as p.

Drafts that follow from the history without chance are the case q(x) = 1. There the same law is: draw from p as ever; if
the draw is the draft, go on. So their draws are, number by number, those of decoding without speculation.

p is the distribution that is sampled from: with penalties, bias, filters, temperature, top-k, top-p and min-p, over a
history that includes the drafts before. verify is the reference in float64, one row in plain Python; DraftVerifier is
what the runner uses, tested against it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from plugserve.backends.torch.runner.device_state import DeviceState
from plugserve.backends.torch.runner.sampler import Sampler, invert_wide_cdf, uniform

_ACCEPT_STREAM = 0x5DEECE66D1234567
_DRAFT_STREAM = 0x2545F4914F6CDD1D


def verify(
    target: Sequence[Sequence[float]],
    drafts: Sequence[int],
    draft_probs: Sequence[Sequence[float]] | None,
    accept_numbers: Sequence[float],
    draw_numbers: Sequence[float],
) -> list[int]:
    """The tokens that a row gains. target[i] is p after i kept drafts, for m + 1 values of i, and draft_probs[i] the q
    that the draft at i of m was drawn from, or None; the m + 1 numbers of each kind are uniform in [0, 1)."""
    gained: list[int] = []
    for i, draft in enumerate(drafts):
        p = target[i]
        if draft_probs is None:
            gained.append(_invert(p, draw_numbers[i]))
            if gained[-1] != draft:
                return gained
            continue
        q = draft_probs[i]
        if accept_numbers[i] * q[draft] >= p[draft]:
            rest = [max(0.0, wanted - offered) for wanted, offered in zip(p, q, strict=True)]
            return [*gained, _invert(rest, draw_numbers[i])]
        gained.append(draft)
    return [*gained, _invert(target[len(drafts)], draw_numbers[len(drafts)])]


def _invert(weights: Sequence[float], number: float) -> int:
    """The token that number in [0, 1) selects from weights, in order of ids; never one of weight 0."""
    left = number * sum(weights)
    for token, weight in enumerate(weights):
        left -= weight
        if left < 0:
            return token
    return max(token for token, weight in enumerate(weights) if weight > 0)


def accept_numbers(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Uniform numbers that decide whether a draft is kept: independent of those that tokens are drawn with."""
    return uniform(seeds ^ _ACCEPT_STREAM, positions)


def draft_numbers(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Uniform numbers that drafts are drawn with: independent of all others."""
    return uniform(seeds ^ _DRAFT_STREAM, positions)


class DraftVerifier:
    """Has the last word on what a step's rows drew, where their drafts were drawn by chance."""

    def __init__(self, state: DeviceState, sampler: Sampler) -> None:
        self._state = state
        self._sampler = sampler

    def choose(
        self,
        logits: torch.Tensor,
        drawn: torch.Tensor,
        places: list[int],
        rows: list[int],
        positions: list[int],
        drafts: torch.Tensor,
        draft_probs: torch.Tensor,
    ) -> torch.Tensor:
        """drawn [S] with the verdict on N drafts put in: a kept draft, or what is drawn in its stead.

        logits [S, V] are adjusted ones. Draft n, drafts[n] drawn from draft_probs[n] [V], is judged at index places[n]
        of S; it belongs to device row rows[n] and would stand at positions[n].
        """
        device = logits.device
        place, row = torch.tensor(places, device=device), torch.tensor(rows, device=device)
        position = torch.tensor(positions, device=device)
        p = self._sampler.distributions(logits[place], row, rows)
        chosen_p = p.gather(1, drafts.unsqueeze(1)).squeeze(1).double()
        chosen_q = draft_probs.gather(1, drafts.unsqueeze(1)).squeeze(1).double()
        seeds = self._state.seed[row]
        is_kept = accept_numbers(seeds, position) * chosen_q < chosen_p
        rest = (p - draft_probs).clamp_(min=0)
        has_rest = rest.sum(-1) > 0  # without one, p and q are equal but for rounding: what was drawn from p will do
        instead = torch.where(has_rest, invert_wide_cdf(rest, uniform(seeds, position)), drawn[place])
        verdict = drawn.clone()
        verdict[place] = torch.where(is_kept, drafts, instead)
        return verdict
