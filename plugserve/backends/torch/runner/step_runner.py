"""A step of a loaded model: forward, sample, harvest. Executors decide on which thread or stream."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from plugserve.backends.torch.runner.adapter_rows import AdapterRows
from plugserve.backends.torch.runner.device_state import DeviceState, StepTensors
from plugserve.backends.torch.runner.host_copies import HostCopies
from plugserve.backends.torch.runner.out_of_memory import MemoryReport, is_out_of_memory
from plugserve.backends.torch.runner.pooler import Pooler
from plugserve.backends.torch.runner.prompt_logprobs import PromptLogprobs
from plugserve.backends.torch.runner.row_forward import RowForward
from plugserve.backends.torch.runner.row_passes import RowPasses
from plugserve.backends.torch.runner.running_step import RunningStep
from plugserve.backends.torch.runner.speculator import DraftedStep, Speculator
from plugserve.backends.torch.runner.stage_tokens import OwnTokens, StageTokens
from plugserve.backends.torch.runner.switched_off import NoAdapterRows
from plugserve.backends.torch.runner.transfers import to_device
from plugserve.backends.torch.sampling.draws import Indices, TokenMasks, make_draws
from plugserve.backends.torch.sampling.sampler import Drawn, Sampler
from plugserve.core.contracts.runner import StepInput, StepResult

if TYPE_CHECKING:
    from plugserve.backends.torch.runner.cuda_graphs import CapturedSteps
    from plugserve.backends.torch.runner.plain_steps import PlainSteps

log = logging.getLogger(__name__)

_NAN = "the model's logits are not numbers (NaN)"


@dataclass(slots=True)
class StepRunner:
    """The parts of a loaded model that a step uses. plain draws rows that ask for nothing but a temperature, captured
    replays decode steps; both are None where the device has neither. A stage that doesn't draw (stage.draws) computes
    its layers and counts."""

    state: DeviceState
    forward: RowForward
    sampler: Sampler
    adapters: AdapterRows | NoAdapterRows
    host_copies: HostCopies
    pooler: Pooler
    prompt_logprobs: PromptLogprobs
    passes: RowPasses
    memory: MemoryReport
    speculator: Speculator | None = None
    plain: PlainSteps | None = None
    captured: CapturedSteps | None = None
    stage: StageTokens = field(default_factory=OwnTokens)

    def begin(self, running: RunningStep) -> None:
        """Run the step's forward pass, and the draw unless it waits for masks. On a GPU both are only queued."""
        self._guard(running, partial(self._compute, running))
        if running.result is None and not (running.step.constrained and self.stage.draws):
            self.sample(running, None)

    def sample(self, running: RunningStep, masks: Any) -> None:
        """Draw a token for each entry that samples, and feed it back. masks are those of provide_masks."""
        self._guard(running, partial(self._sample, running, masks))

    def harvest(self, running: RunningStep) -> StepResult:
        """The step's result. Waits for the device where tokens still lie there."""
        if running.result is not None:
            return running.result
        assert running.drawn is not None
        result, sampling = running.harvest, running.sampling
        for b, token in zip(sampling, running.drawn.tokens.tolist(), strict=True):
            if token < 0:
                result.failed[b] = _NAN
            else:
                result.tokens[b].append(token)
        if running.drawn.logprobs is not None:
            for s, entry in zip(running.drawn.wanting, running.drawn.logprobs.describe(), strict=True):
                result.logprobs[sampling[s]] = [entry]
        return result

    def _guard(self, running: RunningStep, work: Callable[[], None]) -> None:
        """Do work; an exception fails the step's rows."""
        try:
            work()
        except Exception as error:
            if is_out_of_memory(error):
                running.fail(self.memory.report(error))
                return
            log.exception("step failed step_id=%d", running.step.step_id)
            running.fail(f"the model runner failed: {type(error).__name__}")

    # ---- forward

    def _compute(self, running: RunningStep) -> None:
        step = running.step
        self.stage.before(step)
        if step.copy_out or step.copy_in:
            self.host_copies.run(step.copy_out, step.copy_in)
        self.state.apply(step)
        if self.speculator is not None:
            self.speculator.follow(step)
        self.adapters.apply(step)
        if not step.rows:
            running.result = running.harvest
            return
        running.harvest.failed |= self.adapters.failures(step)
        if self.speculator is not None and step.num_drafts:
            running.step = step = self._with_drafts(running, self.speculator)
        if self.stage.draws:
            running.sampling = [b for b, samples in enumerate(step.samples) if samples]
        if self.captured is not None and self._can_replay(running, self.captured.max_num_rows):
            self._replay(running, self.captured)
        else:
            self._compute_eagerly(running, step)

    def _compute_eagerly(self, running: RunningStep, step: StepInput) -> None:
        running.tensors = tensors = self.state.gather(step)
        hidden = self.passes.hidden(step, tensors, running.harvest.failed)
        if not self.stage.draws:
            return
        if not self.state.table.hidden_rows.isdisjoint(step.rows):
            self.prompt_logprobs.add(running.harvest, step, tensors, hidden)
            self.pooler.add(running.harvest, step, tensors, hidden)
        if running.drafted is not None:
            places = to_device(np.array(running.drafted.places), self.state.device)
            running.logits = self.forward.raw_logits(hidden[places])
        elif running.sampling:
            running.index = to_device(np.array(running.sampling), self.state.device)
            running.logits = self.forward.raw_logits(hidden[tensors.last_index[running.index]])

    def _with_drafts(self, running: RunningStep, speculator: Speculator) -> StepInput:
        drafted = speculator.draft(running.step)
        harvest = running.harvest
        harvest.draft_s, harvest.has_draft_error = drafted.draft_s, drafted.has_error
        harvest.draft_error, harvest.is_proposer_off = drafted.error, drafted.is_off
        running.harvest.num_drafted = {b: len(ids) for b, ids in drafted.ids.items()}
        running.drafted = drafted if drafted.ids else None
        return drafted.step

    def _can_replay(self, running: RunningStep, max_num_rows: int) -> bool:
        """Every row computes one token, or its drafts too, and draws what follows each; no row's hidden states are read
        and none has an adapter."""
        step = running.step
        if step.has_adapters or not all(step.samples) or not self.state.table.hidden_rows.isdisjoint(step.rows):
            return False
        num_drafts = 0 if running.drafted is None else sum(map(len, running.drafted.ids.values()))
        return sum(step.num_tokens) == len(step.rows) + num_drafts <= max_num_rows

    def _replay(self, running: RunningStep, captured: CapturedSteps) -> None:
        rows, offsets = running.step.rows, None
        if running.drafted is not None:
            rows, offsets = running.drafted.rows, [n for count in running.step.num_tokens for n in range(count)]
        running.replayed = captured.forward(rows, offsets)
        running.logits = running.replayed.logits

    # ---- sample

    def _sample(self, running: RunningStep, masks: Any) -> None:
        step = running.step
        if running.drafted is not None:
            self._verify(running, running.drafted, masks)
        elif running.replayed is not None and self.captured is not None and self._is_plain(step):
            running.drawn = Drawn(self.captured.draw(len(step.rows)), [], None)
            self.state.advance_host(step)
        else:
            self._sample_eagerly(running, masks)

    def _is_plain(self, step: StepInput) -> bool:
        needing = self.state.table.rows_needing_full_sampler
        return self.plain is not None and not step.constrained and needing.isdisjoint(step.rows)

    def _sample_eagerly(self, running: RunningStep, masks: Any) -> None:
        step, state = running.step, self.state
        tensors = running.tensors or state.gather(step)
        if running.logits is None:
            none = torch.empty(0, dtype=torch.int64, device=state.device)
            state.advance(step, tensors, none, none)
            running.drawn = Drawn(none, [], None)
            self.stage.after(step, none)
            return
        index = running.index if running.index is not None else torch.arange(len(step.rows), device=state.device)
        full = self._needing_full_sampler(running)
        if len(full) == len(running.sampling):
            running.drawn = self._sample_fully(running, tensors, running.logits, full, masks)
        else:
            running.drawn = self._sample_mixed(running, tensors, index, full, masks)
        tokens = running.drawn.tokens.clamp_min(0)
        state.advance(step, tensors, index, tokens)
        self.stage.after(step, tokens)

    def _needing_full_sampler(self, running: RunningStep) -> Indices:
        """The step's draws that need the sampler: all if there is no kernel for plain ones."""
        if self.plain is None:
            return np.arange(len(running.sampling))
        needing, step = self.state.table.rows_needing_full_sampler, running.step
        entries = [s for s, b in enumerate(running.sampling) if step.rows[b] in needing or b in step.constrained]
        return np.array(entries, dtype=np.int64)

    def _sample_fully(
        self, running: RunningStep, tensors: StepTensors, logits: torch.Tensor, full: Indices, masks: Any
    ) -> Drawn:
        """Draws full (indices into sampling) from their raw logits, by the sampler."""
        entries = [running.sampling[s] for s in full]
        num_known = [tensors.starts[b] + tensors.counts[b] for b in entries]
        draws = make_draws([running.step.rows[b] for b in entries], num_known, self.state.device)
        return self.sampler.sample(self.forward.capped(logits), draws, self._token_masks(running, entries, masks))

    def _sample_mixed(
        self, running: RunningStep, tensors: StepTensors, index: torch.Tensor, full: Indices, masks: Any
    ) -> Drawn:
        """All by the kernel, then those that ask for more by the sampler."""
        assert self.plain is not None
        assert running.logits is not None
        logits, tokens = running.logits, tensors.tokens
        drawn = self.plain.draw(logits, tensors.rows[index], tokens.context_lengths[index])
        if not len(full):
            return Drawn(drawn, [], None)
        chosen = to_device(full, self.state.device)
        some = self._sample_fully(running, tensors, logits[chosen], full, masks)
        drawn[chosen] = some.tokens.to(drawn.dtype)
        return Drawn(drawn, full[some.wanting].tolist(), some.logprobs)

    def _token_masks(self, running: RunningStep, entries: list[int], masks: Any) -> TokenMasks | None:
        """The engine's masks, by index into entries."""
        if masks is None:
            return None
        places = [entries.index(b) for b in running.step.constrained]
        return TokenMasks(places, to_device(masks.view(np.int32), self.state.device))

    def _verify(self, running: RunningStep, drafted: DraftedStep, masks: Any) -> None:
        """Draw where some row speculates: tokens go right into the harvest."""
        assert self.speculator is not None
        assert running.logits is not None
        replayed = running.replayed
        if self.plain is not None and self._is_plain(running.step) and drafted.probs is None and replayed is not None:
            drawn = self.plain.draw(replayed.logits, replayed.rows, replayed.num_known)
            self.speculator.settle(drafted, drawn.tolist(), {}, running.harvest)
        else:
            values = self.forward.capped(running.logits)
            token_masks = self._token_masks(running, running.sampling, masks)
            self.speculator.verify(drafted, values, token_masks, running.harvest)
        running.sampling = []
        running.drawn = Drawn(torch.empty(0, dtype=torch.int64, device=self.state.device), [], None)
