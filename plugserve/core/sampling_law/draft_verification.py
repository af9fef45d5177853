"""The law of speculative decoding, one row in plain Python: which drafts are kept, and which token follows them.

Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding", 2023, algorithm 1: a draft x
that was drawn from q is kept with probability min(1, p(x) / q(x)) under the target's p; after the first that isn't, a
token is drawn from norm(max(0, p - q)), and after all were kept, from the next p. What comes out is distributed as p.

Drafts that follow from the history without chance are the case q(x) = 1. For these the law is: draw from p; if the
result equals the draft, continue with the next. So the draws are the same as without speculation, for equal random
numbers.

p is the distribution that is sampled from (reference.py), over a history that includes the drafts before. Every
backend's verification is tested against verify. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence


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
