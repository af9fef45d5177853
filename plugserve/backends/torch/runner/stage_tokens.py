"""The way of drawn tokens through a pipeline: from the last stage to the first, whose row state needs them.

Every stage keeps the state of all rows. The last one draws, and reads a row's tokens for penalties; the first one
embeds them. Those between need only counts, which every stage keeps by itself.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from plugserve.backends.torch.models.pipeline import ComingTokens, Pipeline
from plugserve.backends.torch.runner.device_state import DeviceState
from plugserve.backends.torch.runner.transfers import to_device
from plugserve.core.contracts.runner import StepInput


class StageTokens(Protocol):
    """One stage's part. draws: this stage has the model's head."""

    draws: bool

    def before(self, step: StepInput) -> None:
        """Before the step's deltas are carried out."""

    def after(self, step: StepInput, drawn: torch.Tensor) -> None:
        """The step's rows have advanced; drawn [S] are the tokens of the entries that sample, where they are known."""


class OwnTokens:
    """A model without a pipeline keeps what it draws."""

    draws = True

    def before(self, step: StepInput) -> None: ...

    def after(self, step: StepInput, drawn: torch.Tensor) -> None: ...


class MiddleTokens(OwnTokens):
    """Stages between need no tokens."""

    draws = False


class SentTokens(OwnTokens):
    """The last stage sends what it draws."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def after(self, step: StepInput, drawn: torch.Tensor) -> None:
        if len(drawn):
            self._pipeline.send_tokens(drawn.to(torch.int32))


@dataclass(slots=True)
class _Coming:
    """The tokens of one step: each goes to a place of a row."""

    rows: list[int]
    places: list[int]
    tokens: ComingTokens


class ReceivedTokens:
    """The first stage: a step's tokens are awaited only when a later step has to do with one of their rows."""

    draws = False

    def __init__(self, state: DeviceState, pipeline: Pipeline) -> None:
        self._state = state
        self._pipeline = pipeline
        self._coming: deque[_Coming] = deque()

    def before(self, step: StepInput) -> None:
        rows = {*step.rows, *step.freed_rows}  # a freed row may be another sequence's from this step on
        concerned = [n for n, one in enumerate(self._coming, start=1) if not rows.isdisjoint(one.rows)]
        for _ in range(concerned[-1] if concerned else 0):
            one = self._coming.popleft()
            places = to_device(np.array([one.rows, one.places]), self._state.device)
            self._state.tokens[places[0], places[1]] = one.tokens.wait()

    def after(self, step: StepInput, drawn: torch.Tensor) -> None:
        rows = [row for row, samples in zip(step.rows, step.samples, strict=True) if samples]
        if rows:
            places = self._state.table.num_computed_of(rows)
            self._coming.append(_Coming(rows, places, self._pipeline.receive_tokens(len(rows))))


def stage_tokens(state: DeviceState, pipeline: Pipeline) -> StageTokens:
    """What pipeline's stage does."""
    if pipeline.num_stages == 1:
        return OwnTokens()
    if pipeline.stage == 0:
        return ReceivedTokens(state, pipeline)
    return SentTokens(pipeline) if pipeline.stage == pipeline.num_stages - 1 else MiddleTokens()
