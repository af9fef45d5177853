"""Sends the token masks that launched steps wait for, once the tokens before theirs are collected. Torch-free."""

from __future__ import annotations

from collections.abc import Collection

from plugserve.core.engine.batch import Batch
from plugserve.core.engine.guarded_runner import GuardedRunner
from plugserve.core.engine.structured_output import ConstraintCompiler


class MaskSender:
    """launched are the batches in flight, oldest first."""

    def __init__(self, runner: GuardedRunner, compiler: ConstraintCompiler | None, launched: Collection[Batch]) -> None:
        self._runner = runner
        self._compiler = compiler
        self._launched = launched

    def send(self) -> None:
        """Send the masks of the batches in flight, in order, up to one that has a constrained sequence of an earlier
        one: that one's token has to be collected first."""
        if not any(batch.constrained for batch in self._launched):
            return
        earlier: set[int] = set()
        for batch in self._launched:
            if not earlier.isdisjoint(batch.sequences[b].id for b in batch.constrained):
                return
            if batch.constrained:
                self._send_one(batch)
            earlier.update(sequence.id for sequence in batch.sequences)

    def _send_one(self, batch: Batch) -> None:
        """The token of a sequence that ended meanwhile is discarded, so its mask allows all."""
        assert self._compiler is not None
        masks = self._compiler.empty_masks(len(batch.constrained))
        for mask, b in zip(masks, batch.constrained, strict=True):
            sequence = batch.sequences[b]
            if sequence.constraint is not None and not sequence.is_finished:
                sequence.constraint.fill(mask)
        batch.constrained = []
        self._runner.provide_masks(batch.step_id, masks)
