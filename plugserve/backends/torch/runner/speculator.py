"""Speculative decoding in the runner: gets drafts before a step, writes them into rows, and verifies them after it.

A DraftProposer makes the drafts; engine/speculation.py decides how many a sequence may have. The proposer is called on
the runner's own thread, right before the step that verifies its drafts: the rows' true tokens are known there, while
the engine, which planned the step during the one before, has upper bounds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate

import torch

from plugserve.backends.torch.runner.device_state import DeviceState
from plugserve.backends.torch.sampling.draws import TokenMasks, make_draws
from plugserve.backends.torch.sampling.rejection import DraftVerifier
from plugserve.backends.torch.sampling.sampler import Sampler
from plugserve.core.contracts.drafting import DraftProposer, Drafts, DraftStep
from plugserve.core.contracts.runner import StepInput, StepResult
from plugserve.core.contracts.sampling import TokenLogprobs
from plugserve.core.errors import PluginError
from plugserve.core.plugin_system.failure_policy import is_shutdown

_MOST_ERRORS = 3  # in a row


@dataclass(slots=True)
class DraftedStep:
    """A step with exact token counts. ids are its drafts by entry, index where such an entry stands in probs
    [B, k, V], which the drafts were drawn from (None: without chance).

    Logits are needed at S places: for each entry that samples, one for each draft and one more. first_of is an entry's
    first place. By place, places is the index into the step's tokens, rows and num_known are the device row and how
    many of its tokens are known before the one that is drawn there.
    """

    step: StepInput
    ids: dict[int, list[int]] = field(default_factory=dict)
    index: dict[int, int] = field(default_factory=dict)
    probs: torch.Tensor | None = None
    draft_s: float = 0.0
    has_error: bool = False
    error: BaseException | None = None
    is_off: bool = False
    first_of: dict[int, int] = field(default_factory=dict)
    places: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    num_known: list[int] = field(default_factory=list)

    def lay_out(self, starts: list[int]) -> None:
        """Settle the places. starts are how many tokens of each entry are computed."""
        num_tokens = self.step.num_tokens
        ends = list(accumulate(num_tokens))
        for b, samples in enumerate(self.step.samples):
            if samples:
                num_places = len(self.ids.get(b, ())) + 1
                self.first_of[b] = len(self.places)
                self.places.extend(range(ends[b] - num_places, ends[b]))
                self.rows.extend([self.step.rows[b]] * num_places)
                last = starts[b] + num_tokens[b]
                self.num_known.extend(range(last - num_places + 1, last + 1))


class Speculator:
    """Asks proposer for drafts and verifies them. vocab_size bounds what it may propose."""

    def __init__(self, proposer: DraftProposer, state: DeviceState, sampler: Sampler, vocab_size: int) -> None:
        self._proposer = proposer
        self._state = state
        self._sampler = sampler
        self._vocab_size = vocab_size
        self._verifier = DraftVerifier(state, sampler)
        self._sequence_ids: dict[int, int] = {}  # by device row
        self._num_errors = 0  # one after another
        self._error: BaseException | None = None  # not reported yet

    # ---- before the step

    def follow(self, step: StepInput) -> None:
        """Call the proposer's forget for sequences that left their rows, and note those that took one. Called every
        step."""
        for row in step.freed_rows:
            id = self._sequence_ids.pop(row, None)
            if id is not None:
                self._forget(id)
        for new in step.new_rows:
            self._sequence_ids[new.row] = new.id

    def _forget(self, id: int) -> None:
        try:
            self._proposer.forget(id)
        except BaseException as error:
            if is_shutdown(error):
                raise
            self._error = error  # reported with the next step that drafts

    def draft(self, step: StepInput) -> DraftedStep:
        """step with drafts written into its rows; without any, where the proposer fails."""
        wanted = [b for b, most in enumerate(step.num_drafts) if most]
        rows = [step.rows[b] for b in wanted]
        request = DraftStep(
            ids=[self._sequence_ids[row] for row in rows],
            rows=rows,
            lengths=[computed + 1 for computed in self._state.table.num_computed_of(rows)],
            num_drafts=[step.num_drafts[b] for b in wanted],
            tokens=self._state.tokens,
        )
        started_s = time.perf_counter()
        drafts, ids = self._propose(request)
        self._write(request, ids)
        drafted = DraftedStep(step, has_error=drafts is None, draft_s=time.perf_counter() - started_s)
        drafted.error, self._error = self._error, None
        drafted.is_off = self._num_errors >= _MOST_ERRORS
        if drafts is not None:
            drafted.probs = drafts.probs
        drafted.ids = {b: row_ids for b, row_ids in zip(wanted, ids, strict=True) if row_ids}
        drafted.index = {b: i for i, b in enumerate(wanted)}
        num_tokens = [
            count - most + len(drafted.ids.get(b, ()))
            for b, (count, most) in enumerate(zip(step.num_tokens, step.num_drafts, strict=True))
        ]
        drafted.step = replace(step, num_tokens=num_tokens)
        drafted.lay_out(self._state.table.num_computed_of(step.rows))
        return drafted

    def _propose(self, request: DraftStep) -> tuple[Drafts | None, list[list[int]]]:
        """The proposer's drafts, also as ids by row. After _MOST_ERRORS failures one after another it is left out."""
        nothing: list[list[int]] = [[] for _ in request.rows]
        if self._num_errors >= _MOST_ERRORS:
            return None, nothing
        try:
            drafts = self._proposer.propose(request, max(request.num_drafts))
            ids = self._checked(drafts, request)
        except BaseException as error:
            if is_shutdown(error):
                raise
            self._num_errors += 1
            self._error = error
            return None, nothing
        self._num_errors = 0
        return drafts, ids

    def _checked(self, drafts: Drafts, request: DraftStep) -> list[list[int]]:
        """Each row's drafts as ids. Raises PluginError for what breaks the contract."""
        if len(drafts.counts) != len(request.rows) or len(drafts.tokens) != len(request.rows):
            raise PluginError(f"the draft proposer returned {len(drafts.counts)} counts for {len(request.rows)} rows")
        ids = [row[:count] for row, count in zip(drafts.tokens.tolist(), drafts.counts, strict=True)]
        for row_ids, count, most in zip(ids, drafts.counts, request.num_drafts, strict=True):
            if not 0 <= count <= most or len(row_ids) != count:
                raise PluginError(f"the draft proposer returned {count} drafts, at most {most} were asked for")
            if row_ids and not 0 <= min(row_ids) <= max(row_ids) < self._vocab_size:
                raise PluginError(f"the draft proposer returned a token outside the vocabulary of {self._vocab_size}")
        if drafts.probs is not None and drafts.probs.shape != (*drafts.tokens.shape, self._vocab_size):
            raise PluginError(f"the draft proposer's probs have shape {list(drafts.probs.shape)}, not [B, k, V]")
        return ids

    def _write(self, request: DraftStep, ids: list[list[int]]) -> None:
        """Drafts behind the known tokens of their rows."""
        self._state.write_tokens(list(zip(request.rows, request.lengths, ids, strict=True)))

    # ---- after the forward pass

    def verify(self, drafted: DraftedStep, logits: torch.Tensor, masks: TokenMasks | None, result: StepResult) -> None:
        """Draw at drafted's places from their logits [S, V] float32, changed in place, and settle. masks count the
        entries that sample."""
        if masks is not None:
            firsts = list(drafted.first_of.values())
            masks = TokenMasks([firsts[s] for s in masks.entries], masks.words)
        draws = make_draws(drafted.rows, drafted.num_known, self._state.device)
        judge = partial(self._judge, drafted) if drafted.probs is not None else None
        drawn = self._sampler.sample(logits, draws, masks, judge)
        entries = drawn.logprobs.describe() if drawn.logprobs is not None else []
        logprobs = {place: [entry] for place, entry in zip(drawn.wanting, entries, strict=True)}
        self.settle(drafted, drawn.tokens.tolist(), logprobs, result)

    def settle(
        self,
        drafted: DraftedStep,
        drawn: list[int],
        logprobs: dict[int, list[TokenLogprobs]],
        result: StepResult,
    ) -> None:
        """Fill result with the tokens of the rows that sample, and advance the device's state by them. drawn has the
        target's token at each of drafted's places, -1 where its logits are not numbers; logprobs are by place, where
        wanted."""
        num_computed: list[int] = list(drafted.step.num_tokens)
        lasts: list[int | None] = [None] * len(num_computed)
        for b, first in drafted.first_of.items():
            drafts = drafted.ids.get(b, [])
            end = first + _num_kept(drafts, drawn[first : first + len(drafts)]) + 1
            result.tokens[b] = drawn[first:end]
            if first in logprobs:
                result.logprobs[b] = [entry for place in range(first, end) for entry in logprobs[place]]
            if drawn[end - 1] < 0:
                result.failed[b] = "the model's logits are not numbers (NaN)"
            num_computed[b] -= len(drafts) + 1 - (end - first)
            lasts[b] = max(0, drawn[end - 1])
        self._state.advance_by(list(zip(drafted.step.rows, num_computed, lasts, strict=True)))

    def _judge(self, drafted: DraftedStep, logits: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """Rejection sampling of drafts that were drawn from a distribution; in a greedy row the draw itself decides."""
        assert drafted.probs is not None
        places: list[int] = []
        rows: list[int] = []
        positions: list[int] = []
        drafts: list[int] = []
        of_probs: list[tuple[int, int]] = []
        for b, first in drafted.first_of.items():
            row = drafted.step.rows[b]
            if b in drafted.ids and self._state.table.rules[row].params.temperature > 0:
                ids = drafted.ids[b]
                places += range(first, first + len(ids))
                rows += [row] * len(ids)
                positions += drafted.num_known[first : first + len(ids)]
                drafts += ids
                of_probs += [(drafted.index[b], i) for i in range(len(ids))]
        if not places:
            return drawn
        i, j = torch.tensor(of_probs, device=logits.device).T
        chosen = torch.tensor(drafts, device=logits.device)
        draws = make_draws(rows, positions, logits.device)
        judged = torch.tensor(places, device=logits.device)
        return self._verifier.judge(logits, drawn, judged, draws, chosen, drafted.probs[i, j])


def _num_kept(drafts: list[int], drawn: list[int]) -> int:
    """The number of drafts equal to the target's draws, up to the first difference."""
    return next((i for i, (draft, token) in enumerate(zip(drafts, drawn, strict=True)) if draft != token), len(drafts))
