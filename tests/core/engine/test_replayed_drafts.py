"""Verification in captured steps, on a CPU: the runner's side of it, with eager passes in the graphs' place."""

import numpy as np
import pytest
import torch

from plugserve.backends.torch.runner.cuda_graphs import Replayed
from plugserve.core.engine.acceptance import DraftPolicy
from plugserve.plugins.speculative.ngram import NgramProposer
from tests.core.engine.test_combinations import (  # noqa: F401
    MAX_TOKENS,
    comparable,
    draft_files,
    draft_model,
    model,
    prompts,
)
from tests.core.harness import LocalEngine


class Eager:
    """What CapturedSteps gives, computed when it is asked for; counts the passes over rows that stand there twice."""

    max_num_rows = 64

    def __init__(self, steps):
        self._steps = steps
        self.num_verifications = 0

    def forward(self, rows, offsets=None):
        steps, size = self._steps, len(rows)
        offsets = offsets or [0] * size
        self.num_verifications += len(set(rows)) < size
        context_lens = (np.array(steps.state.table.num_computed_of(rows)) + offsets + 1).tolist()
        places = torch.tensor(rows), torch.arange(size + 1, dtype=torch.int32), [1] * size, context_lens
        hidden, lengths = steps.forward.last_hidden(*places, torch.tensor(offsets, dtype=torch.int32))
        return Replayed(steps.forward.raw_logits(hidden), places[0].int(), lengths)


@pytest.mark.parametrize("drafts", ["ngram", "greedy draft model", "draft model"])
@pytest.mark.parametrize("params", [{}, {"num_logprobs": 2}, {"repetition_penalty": 1.3}])
def test_text_is_the_same(drafts, params, model, prompts, draft_files):  # noqa: F811
    proposers = {"ngram": lambda **_: NgramProposer(3, 1), "greedy draft model": draft_model(is_greedy=True)}
    with LocalEngine(*model) as local:
        expected = local.generate_all(prompts, [params] * len(prompts), max_tokens=MAX_TOKENS)
    with LocalEngine(
        *model, proposer=proposers.get(drafts, draft_model(is_greedy=False)), draft_files=draft_files,
        draft_policy=DraftPolicy(4, is_adaptive=False),
    ) as local:  # fmt: skip
        steps = local.runner.loaded.steps
        steps.captured = eager = Eager(steps)
        done = local.generate_all(prompts, [params] * len(prompts), max_tokens=MAX_TOKENS)
        assert comparable(done) == comparable(expected)
        assert eager.num_verifications > 10
        assert local.engine.stats.num_accepted_draft_tokens > 0
