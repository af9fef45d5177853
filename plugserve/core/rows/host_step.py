"""A step of a ForwardPass: forward, draw, result. Torch-free."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from plugserve.core.contracts.forward_pass import Floats, ForwardPass, HostBatch
from plugserve.core.contracts.runner import StepInput, StepResult
from plugserve.core.contracts.sampling import TokenLogprobs
from plugserve.core.rows.host_draws import HostDraws, Mask
from plugserve.core.rows.host_logprobs import describe
from plugserve.core.rows.host_rows import HostRows
from plugserve.core.rows.row_table import Need

log = logging.getLogger(__name__)

_NAN = "the model's logits are not numbers (NaN)"
_NO_STATES = "this backend has no hidden states: prompt logprobs and pooling are not supported"
_LOGIT_ROWS = 64  # hidden states whose logits are computed at a time
_LOGPROBS = int(Need.LOGPROBS)

WaitForMasks = Callable[[StepInput], Any]


class HostSteps:
    """Runs steps one after another on rows. wait_for_masks returns the engine's masks for a step."""

    def __init__(self, forward: ForwardPass, rows: HostRows, wait_for_masks: WaitForMasks) -> None:
        self._forward = forward
        self._rows = rows
        self._table = rows.table
        self._draws = HostDraws(rows)
        self._wait_for_masks = wait_for_masks
        self._sums: dict[int, Floats] = {}  # of pooled rows

    def run(self, step: StepInput) -> StepResult:
        """A failure fails the step's rows, never the runner."""
        started_s = time.perf_counter()
        try:
            result = self._run(step)
        except Exception as error:
            if isinstance(error, MemoryError):
                reason = "out of memory in a step; lower --max-num-batched-tokens or --max-num-seqs"
            else:
                log.exception("step failed step_id=%d", step.step_id)
                reason = f"the model runner failed: {type(error).__name__}"
            entries = range(len(step.rows))
            failed = dict.fromkeys(entries, reason)
            result = StepResult(step.step_id, tokens=[[] for _ in entries], failed=failed, has_failed=True)
        result.duration_s = time.perf_counter() - started_s
        return result

    def _run(self, step: StepInput) -> StepResult:
        if step.copy_out or step.copy_in:
            self._forward.copy_blocks(step.copy_out, step.copy_in)
        self._rows.apply(step)
        for row in step.freed_rows:
            self._sums.pop(row, None)
        result = StepResult(step.step_id, tokens=[[] for _ in step.rows])
        if not step.rows:
            return result
        batch = self._rows.read(step)
        sampling = [b for b, samples in enumerate(step.samples) if samples]
        needs_hidden = not self._table.hidden_rows.isdisjoint(step.rows)
        wanted = batch.last_index if len(sampling) == len(step.rows) else batch.last_index[sampling]
        computed = self._forward.compute(batch, wanted, needs_hidden and self._forward.has_hidden_states)
        if needs_hidden:
            self._use_hidden(step, batch, computed.hidden, result)
        drawn = self._draw(step, sampling, computed.logits, batch, result) if sampling else {}
        self._rows.advance(step, drawn)
        return result

    # ---- tokens

    def _draw(
        self, step: StepInput, sampling: list[int], logits: Floats, batch: HostBatch, result: StepResult
    ) -> dict[int, int]:
        rows = step.rows if len(sampling) == len(step.rows) else [step.rows[b] for b in sampling]
        num_known = batch.context_lens[sampling].tolist()
        tokens = self._draws.draw(logits, rows, num_known, self._masks(step, sampling, logits.shape[1]))
        drawn: dict[int, int] = {}
        for s, (b, token) in enumerate(zip(sampling, tokens, strict=True)):
            drawn[b] = max(0, token)
            if token < 0:
                result.failed[b] = _NAN
                continue
            result.tokens[b].append(token)
            if self._table.needs[rows[s]] & _LOGPROBS:
                num_top = self._table.rules[rows[s]].params.num_logprobs or 0
                result.logprobs[b] = [describe(logits[s], token, num_top)]
        return drawn

    def _masks(self, step: StepInput, sampling: list[int], vocab_size: int) -> dict[int, Mask]:
        if not step.constrained:
            return {}
        words = np.ascontiguousarray(self._wait_for_masks(step))
        bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
        return {sampling.index(b): bits[i, :vocab_size].astype(bool) for i, b in enumerate(step.constrained)}

    # ---- hidden states

    def _use_hidden(self, step: StepInput, batch: HostBatch, hidden: Floats | None, result: StepResult) -> None:
        """Prompt logprobs and pooled vectors of rows that ask for them."""
        for b, row in enumerate(step.rows):
            rule = self._table.rules[row]
            if rule.params.num_prompt_logprobs is None and not rule.params.pooling:
                continue
            if hidden is None:
                result.failed[b] = _NO_STATES
                continue
            start, end = batch.query_starts[b], batch.query_starts[b + 1]
            place = int(batch.context_lens[b] - (end - start))  # of the first token in its sequence
            states = hidden[start:end]
            if rule.params.num_prompt_logprobs is not None:
                num_targets = min(len(states), rule.num_prompt_tokens - 1 - place)
                if num_targets > 0:
                    targets = self._rows.tokens[row, place + 1 : place + 1 + num_targets].tolist()
                    result.prompt_logprobs[b] = self._score(
                        states[:num_targets], targets, rule.params.num_prompt_logprobs
                    )
            if rule.params.pooling:
                is_last = place + len(states) >= rule.num_prompt_tokens
                vector = self._pool(row, rule.params.pooling, place, states, is_last)
                if vector is not None:
                    result.pooled[b] = vector.astype(np.float32).tobytes()

    def _score(self, states: Floats, targets: list[int], num_top: int) -> list[TokenLogprobs]:
        entries: list[TokenLogprobs] = []
        for first in range(0, len(targets), _LOGIT_ROWS):
            logits = self._forward.logits_of(states[first : first + _LOGIT_ROWS])
            some = targets[first : first + _LOGIT_ROWS]
            entries += [describe(one, token, num_top) for one, token in zip(logits, some, strict=True)]
        return entries

    def _pool(self, row: int, pooling: str, place: int, states: Floats, is_last: bool) -> Floats | None:
        if pooling == "last":
            return states[-1] if is_last else None
        total: Floats = states.sum(0)
        if place > 0:  # a row that starts anew starts from nothing
            total = total + self._sums[row]
        self._sums[row] = total
        return self._sums.pop(row) / np.float32(place + len(states)) if is_last else None
