"""Logprobs of prompt tokens, for rows that ask: of each token whose predecessor a step computed."""

from __future__ import annotations

import torch

from plugserve.backends.torch.runner.device_state import DeviceState, StepTensors
from plugserve.backends.torch.runner.out_of_memory import MemoryReport, is_out_of_memory
from plugserve.backends.torch.runner.row_forward import RowForward
from plugserve.backends.torch.sampling.logprobs import logprobs_of
from plugserve.core.contracts.runner import StepInput, StepResult
from plugserve.core.contracts.sampling import TokenLogprobs

_LOGIT_ROWS = 64  # computed in slices, so that logits stay small


class PromptLogprobs:
    """Scores prompt tokens of state's rows by forward's logits."""

    def __init__(self, state: DeviceState, forward: RowForward, memory: MemoryReport) -> None:
        self._state = state
        self._memory = memory
        self._forward = forward

    def add(self, result: StepResult, step: StepInput, tensors: StepTensors, hidden: torch.Tensor) -> None:
        """Put the logprobs that follow from the step's hidden states [T, H] into result. A row for which memory runs
        out fails alone."""
        offset = 0
        for b, row in enumerate(step.rows):
            rule = self._state.table.rules[row]
            start, count = tensors.starts[b], tensors.counts[b]
            num_targets = min(count, rule.num_prompt_tokens - 1 - start)
            if rule.params.num_prompt_logprobs is not None and num_targets > 0:
                targets = self._state.tokens[row, start + 1 : start + 1 + num_targets].long()
                here = hidden[offset : offset + num_targets]
                try:
                    result.prompt_logprobs[b] = self._score(here, targets, rule.params.num_prompt_logprobs)
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    result.failed[b] = self._memory.report(error)
            offset += count

    def _score(self, hidden: torch.Tensor, targets: torch.Tensor, num_top: int) -> list[TokenLogprobs]:
        entries: list[TokenLogprobs] = []
        for some, chosen in zip(torch.split(hidden, _LOGIT_ROWS), torch.split(targets, _LOGIT_ROWS), strict=True):
            distributions = self._forward.logits(some).log_softmax(-1)
            entries += logprobs_of(distributions, chosen, [num_top] * len(chosen)).describe()
        return entries
