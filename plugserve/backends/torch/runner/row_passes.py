"""The forward pass of a step's rows, of fewer rows at a time where memory runs out."""

from __future__ import annotations

import torch

from plugserve.backends.torch.runner.adapter_rows import AdapterRows
from plugserve.backends.torch.runner.device_state import DeviceState, StepTensors
from plugserve.backends.torch.runner.out_of_memory import (
    ExplainedMemoryError,
    MemoryReport,
    is_out_of_memory,
    release_cached_memory,
)
from plugserve.backends.torch.runner.row_forward import RowForward
from plugserve.backends.torch.runner.switched_off import NoAdapterRows
from plugserve.core.contracts.runner import StepInput


class RowPasses:
    """Eager passes over state's rows. can_split is False for a stage of a pipeline: the others compute whole steps."""

    def __init__(
        self,
        state: DeviceState,
        forward: RowForward,
        adapters: AdapterRows | NoAdapterRows,
        memory: MemoryReport,
        *,
        can_split: bool = True,
    ) -> None:
        self._state = state
        self._forward = forward
        self._adapters = adapters
        self._memory = memory
        self._can_split = can_split

    def hidden(self, step: StepInput, tensors: StepTensors, failed: dict[int, str]) -> torch.Tensor:
        """Hidden states [T, H] of the step. Where memory runs out, its halves are computed one after the other, and
        theirs; an entry that fails by itself gets its reason in failed, and zeros. Raises ExplainedMemoryError if all
        do.

        A pass can be repeated: it writes the same keys and values again.
        """
        try:
            return self._pass(step, tensors)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or not self._can_split:
                raise
            reason = self._memory.report(error)
        release_cached_memory()  # out of the handler, which keeps the failed pass's tensors alive
        parts = self._halves(step, list(range(len(step.rows))), failed, reason)
        one = next((part for part in parts if part is not None), None)
        if one is None:
            raise ExplainedMemoryError(reason)
        counts = zip(parts, step.num_tokens, strict=True)
        return torch.cat([one.new_zeros((count, one.shape[1])) if part is None else part for part, count in counts])

    def _pass(self, step: StepInput, tensors: StepTensors) -> torch.Tensor:
        context_lens = [start + count for start, count in zip(tensors.starts, tensors.counts, strict=True)]
        return self._forward.hidden(tensors.tokens, tensors.counts, context_lens, self._adapters.plan(step))

    def _halves(
        self, step: StepInput, entries: list[int], failed: dict[int, str], reason: str
    ) -> list[torch.Tensor | None]:
        """Hidden states of each of entries, None for those that failed."""
        if len(entries) == 1:
            failed[entries[0]] = reason
            return [None]
        middle = len(entries) // 2
        return [
            part for half in (entries[:middle], entries[middle:]) for part in self._some(step, half, failed, reason)
        ]

    def _some(
        self, step: StepInput, entries: list[int], failed: dict[int, str], reason: str
    ) -> list[torch.Tensor | None]:
        some = StepInput(
            step_id=step.step_id,
            new_rows=[],
            freed_rows=[],
            new_blocks=[],
            rows=[step.rows[b] for b in entries],
            num_tokens=[step.num_tokens[b] for b in entries],
            samples=[step.samples[b] for b in entries],
            has_adapters=step.has_adapters,
        )
        try:
            hidden = self._pass(some, self._state.gather(some))
            return list(torch.split(hidden, some.num_tokens))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        release_cached_memory()
        return self._halves(step, entries, failed, reason)
