"""Pools a prompt's hidden states into one vector, over all steps of the prompt."""

from __future__ import annotations

from collections.abc import Callable

import torch

from plugserve.backends.torch.runner.device_state import DeviceState, StepTensors
from plugserve.core.contracts.runner import StepInput, StepResult


class Pooler:
    """Sums by row for rows that ask for a mean; normed is the model's last norm, [T, H] to float32 [T, H]."""

    def __init__(self, state: DeviceState, normed: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._state = state
        self._normed = normed
        self._sums: dict[int, torch.Tensor] = {}

    def add(self, result: StepResult, step: StepInput, tensors: StepTensors, hidden: torch.Tensor) -> None:
        """Take the step's hidden states [T, H] in; rows whose prompt ends in this step get their vector."""
        for row in step.freed_rows:
            self._sums.pop(row, None)
        offset = 0
        for b, row in enumerate(step.rows):
            rule = self._state.table.rules[row]
            start, count = tensors.starts[b], tensors.counts[b]
            if rule.params.pooling:
                is_last = start + count >= rule.num_prompt_tokens
                vector = self._pool(row, rule.params.pooling, start, hidden[offset : offset + count], is_last)
                if vector is not None:
                    result.pooled[b] = vector.cpu().numpy().tobytes()
            offset += count

    def _pool(self, row: int, pooling: str, start: int, hidden: torch.Tensor, is_last: bool) -> torch.Tensor | None:
        if pooling == "last":
            return self._normed(hidden[-1:])[0] if is_last else None
        total = self._normed(hidden).sum(0)
        if start > 0:  # a row that starts anew starts from nothing
            total += self._sums[row]
        self._sums[row] = total
        return self._sums.pop(row) / (start + len(hidden)) if is_last else None
