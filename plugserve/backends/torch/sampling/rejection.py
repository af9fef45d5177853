"""Speculative sampling: keeps or replaces drafts that were drawn by chance.

The torch form of core/sampling_law/draft_verification.py. Its target is what the sampler draws from, weighed the same
way.
"""

from __future__ import annotations

import torch

from plugserve.backends.torch.runner.device_state import DeviceState
from plugserve.backends.torch.sampling.draws import Draws
from plugserve.backends.torch.sampling.inverse_cdf import accept_numbers, invert_wide_cdf, uniform
from plugserve.backends.torch.sampling.sampler import Sampler


class DraftVerifier:
    """Decides about drafts at some of a step's draws."""

    def __init__(self, state: DeviceState, sampler: Sampler) -> None:
        self._state = state
        self._sampler = sampler

    def judge(
        self,
        logits: torch.Tensor,
        drawn: torch.Tensor,
        places: torch.Tensor,
        draws: Draws,
        drafts: torch.Tensor,
        draft_probs: torch.Tensor,
    ) -> torch.Tensor:
        """drawn [S] with N places set: to the draft if it is kept, else to its replacement.

        logits [S, V] are adjusted ones. Draft n, drafts[n] drawn from draft_probs[n] [V], is judged at draw places[n]
        of S, which is draws' n-th.
        """
        p = self._sampler.distributions(logits[places], draws)
        chosen_p = p.gather(1, drafts.unsqueeze(1)).squeeze(1).double()
        chosen_q = draft_probs.gather(1, drafts.unsqueeze(1)).squeeze(1).double()
        seeds = self._state.seed[draws.device_rows]
        is_kept = accept_numbers(seeds, draws.positions) * chosen_q < chosen_p
        rest = (p - draft_probs).clamp_(min=0)
        has_rest = rest.sum(-1) > 0  # otherwise p and q are equal up to rounding: keep the token drawn from p
        instead = torch.where(has_rest, invert_wide_cdf(rest, uniform(seeds, draws.positions)), drawn[places])
        verdict = drawn.clone()
        verdict[places] = torch.where(is_kept, drafts, instead)
        return verdict
