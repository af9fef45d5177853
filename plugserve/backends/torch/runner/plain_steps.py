"""Draws by the kernel, for rows whose only sampling parameter is a temperature: the sampler's alternative on a GPU."""

from __future__ import annotations

import torch

from plugserve.backends.torch.kernels.plain_draw import PlainDraw
from plugserve.backends.torch.kernels.step_state import advance_rows
from plugserve.backends.torch.runner.device_state import DeviceState


class PlainSteps:
    """Draws by the temperatures and seeds of state's rows."""

    def __init__(self, state: DeviceState, draw: PlainDraw) -> None:
        self._state = state
        self._draw = draw

    def draw(self, logits: torch.Tensor, rows: torch.Tensor, num_known: torch.Tensor) -> torch.Tensor:
        """Tokens [S] int32 from raw logits [S, V], -1 where they are not numbers, for device rows [S] of which
        num_known [S] tokens are known."""
        drawn = torch.empty(len(rows), dtype=torch.int32, device=logits.device)
        self._draw.draw(logits, rows, num_known, self._state.temperature, self._state.seed, drawn)
        return drawn

    def draw_and_feed_back(
        self, logits: torch.Tensor, rows: torch.Tensor, lengths: torch.Tensor, drawn: torch.Tensor
    ) -> None:
        """cuda_graphs.DrawRows: fill drawn, and write it after the rows' tokens."""
        state = self._state
        self._draw.draw(logits, rows, lengths, state.temperature, state.seed, drawn)
        advance_rows(rows, lengths, drawn, state.tokens, state.num_computed, state.padding_row)
