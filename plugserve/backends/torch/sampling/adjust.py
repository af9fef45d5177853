"""Adjust: what changes logits before they are weighed - penalties, bias, bans, a grammar's mask - batched, in place.

Each rule runs once for all draws that use it and changes no others; nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from plugserve.backends.torch.runner.device_state import DeviceState
from plugserve.backends.torch.runner.transfers import to_device
from plugserve.backends.torch.sampling.draws import Draws, Indices, TokenMasks
from plugserve.backends.torch.sampling.row_lists import ANY
from plugserve.core.rows.row_table import Need


class Adjuster:
    """The rules of the rows of state."""

    def __init__(self, state: DeviceState) -> None:
        self._state = state
        self._rules: tuple[tuple[int, Callable[[torch.Tensor, Draws, Indices], None]], ...] = (
            (int(Need.REPETITION), self._penalise_repetition),
            (int(Need.COUNTS), self._penalise_counts),
            (int(Need.BIAS), self._add_bias),
            (int(Need.STOP_IDS), self._hold_back_stop_ids),
            (int(Need.ALLOWED), self._keep_allowed),
            (int(Need.BAD_WORDS), self._ban_bad_words),
        )

    def apply(self, logits: torch.Tensor, draws: Draws, masks: TokenMasks | None = None) -> None:
        """Adjust logits [S, V] of draws in place."""
        needs = self._state.table.needs[draws.rows]
        found = int(np.bitwise_or.reduce(needs)) if len(needs) else 0
        for need, rule in self._rules:
            if found & need:
                rule(logits, draws, np.flatnonzero(needs & need))
        if masks is not None:
            self._mask(logits, masks)

    # ---- penalties

    def _penalise_repetition(self, logits: torch.Tensor, draws: Draws, entries: Indices) -> None:
        """The repetition penalty of all known tokens, including the prompt's (Keskar et al. 2019)."""
        index = to_device(entries, logits.device)
        first = torch.zeros_like(index)
        ids, _ = self._known_tokens(draws, index, first, int(draws.num_known[entries].max()))
        places = index.unsqueeze(1) * logits.shape[1] + ids
        penalty = self._state.repetition_penalty[draws.device_rows[index]].unsqueeze(1)
        flat = logits.view(-1)
        values = flat[places]
        flat[places] = torch.where(values > 0, values / penalty, values * penalty)  # equal for a token that comes twice

    def _penalise_counts(self, logits: torch.Tensor, draws: Draws, entries: Indices) -> None:
        """Penalties of generated tokens: frequency times their number, and presence once."""
        state, rows = self._state, draws.rows[entries]
        most = int((draws.num_known[entries] - state.table.scalars["num_prompt_tokens"][rows]).max())
        if most <= 0:
            return
        index = to_device(entries, logits.device)
        device_rows = draws.device_rows[index]
        ids, is_generated = self._known_tokens(draws, index, state.num_prompt_tokens[device_rows].long(), most)
        totals = torch.zeros((len(entries), logits.shape[1]), device=logits.device)
        totals.scatter_add_(1, ids, is_generated.float())
        counts = totals.gather(1, ids)
        share = state.frequency_penalty[device_rows].unsqueeze(1) * counts
        share += torch.where(counts > 0, state.presence_penalty[device_rows].unsqueeze(1), 0.0)
        places = index.unsqueeze(1) * logits.shape[1] + ids
        flat = logits.view(-1)
        flat[places] = flat[places] - share  # equal for a token that comes twice

    def _known_tokens(
        self, draws: Draws, index: torch.Tensor, first: torch.Tensor, most: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids [P, most] of draws index from position first [P] on, and which of them are known. The rest repeats
        the one at first."""
        tokens, rows = self._state.tokens, draws.device_rows[index].unsqueeze(1)
        positions = first.unsqueeze(1) + torch.arange(most, device=first.device)
        is_known = positions < draws.positions[index].unsqueeze(1)
        ids = tokens[rows, torch.where(is_known, positions, first.unsqueeze(1))].long()
        return ids, is_known

    # ---- lists

    def _add_bias(self, logits: torch.Tensor, draws: Draws, entries: Indices) -> None:
        bias = self._state.lists.bias.join(entries, draws.rows[entries])
        places, flat = bias.places(logits.shape[1]), logits.view(-1)
        flat[places] = flat[places] + bias.values

    def _hold_back_stop_ids(self, logits: torch.Tensor, draws: Draws, entries: Indices) -> None:
        scalars = self._state.table.scalars[draws.rows[entries]]
        num_generated = draws.num_known[entries] - scalars["num_prompt_tokens"]
        entries = entries[num_generated < scalars["min_tokens"]]
        if len(entries):
            held = self._state.lists.stop_ids.join(entries, draws.rows[entries])
            logits.view(-1)[held.places(logits.shape[1])] = -torch.inf

    def _keep_allowed(self, logits: torch.Tensor, draws: Draws, entries: Indices) -> None:
        allowed = self._state.lists.allowed.join(entries, draws.rows[entries])
        places, flat = allowed.places(logits.shape[1]), logits.view(-1)
        kept = flat[places]
        logits.index_fill_(0, to_device(entries, logits.device), -torch.inf)
        flat[places] = kept

    def _ban_bad_words(self, logits: torch.Tensor, draws: Draws, entries: Indices) -> None:
        """The last token of each word whose beginning is what the row ends with."""
        words = self._state.lists.bad_words.join(entries, draws.rows[entries])
        known = draws.positions[words.draws]
        places = known.unsqueeze(1) + torch.arange(-words.length, 0, device=logits.device)
        recent = self._state.tokens[draws.device_rows[words.draws].unsqueeze(1), places.clamp_min(0)]
        fits = ((words.beginnings == recent) | (words.beginnings == ANY)).all(1) & (words.sizes <= known)
        banned = torch.where(fits, -torch.inf, torch.inf).to(logits.dtype)
        logits.view(-1).scatter_reduce_(0, words.draws * logits.shape[1] + words.last, banned, "amin")

    # ---- grammars

    def _mask(self, logits: torch.Tensor, masks: TokenMasks) -> None:
        """Apply the grammar's mask. If another rule bans every allowed token, that rule is ignored."""
        index = to_device(np.array(masks.entries), logits.device)
        allowed = masks.allowed(logits.shape[1])
        values = logits[index].masked_fill_(~allowed, -torch.inf)
        has_none = values.amax(-1, keepdim=True) == -torch.inf
        logits[index] = values.masked_fill_(has_none & allowed, 0.0)
