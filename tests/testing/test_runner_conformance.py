"""The conformance kit fails each runner that has a planted bug."""

from __future__ import annotations

import dataclasses

import pytest

from plugserve.testing import FakeRunner, RunnerConformance
from tests.testing.kit_runner import catches


class SortsEntriesByRow(FakeRunner):
    """Returns the rows of a step sorted by device row instead of in batch order."""

    def collect(self):
        result = super().collect()
        order = self.batches.pop(0)
        tokens = [tokens for _, tokens in sorted(zip(order, result.tokens, strict=True))]
        return dataclasses.replace(result, tokens=tokens)

    def launch(self, step):
        self.__dict__.setdefault("batches", []).append(list(step.rows))
        super().launch(step)


class NewestStepFirst(FakeRunner):
    def collect(self):
        return self._results.pop()


class SamplesUnfinishedPrompts(FakeRunner):
    def launch(self, step):
        super().launch(step)
        for tokens in self._results[-1].tokens:
            if not tokens:
                tokens.append(0)


class IgnoresSharedBlocks(FakeRunner):
    def _add(self, new):
        super()._add(new)
        if new.num_computed:
            self._memory[new.blocks[0]][0] = 7


class AppliesAnotherEntrysMask(FakeRunner):
    def provide_masks(self, step_id, masks):
        super().provide_masks(step_id, masks[::-1])


class CopiesInFirst(FakeRunner):
    """With host memory, whose copies in it makes before those out."""

    def __init__(self):
        super().__init__(num_host_slots=4)
        self._host = dict.fromkeys(range(4), [-1] * self.info.block_size)

    def launch(self, step):
        for slot, block in step.copy_in:
            self._memory[block] = list(self._host[slot])
        super().launch(dataclasses.replace(step, copy_in=[]))


@pytest.mark.parametrize(
    "runner",
    [
        SortsEntriesByRow,
        NewestStepFirst,
        SamplesUnfinishedPrompts,
        IgnoresSharedBlocks,
        AppliesAnotherEntrysMask,
        CopiesInFirst,
    ],
    ids=lambda runner: runner.__name__,
)
def test_runner_bug_is_caught(runner):
    class Case(RunnerConformance):
        honours_sampling = False
        honours_logprobs = False

        def make_runner(self):
            return runner()

    assert catches(Case, "Error")
