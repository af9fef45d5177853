"""Steps whose plain rows are drawn apart from those that ask for more: text is the same as with one sampler for all."""

from __future__ import annotations

import pytest
import torch

from plugserve.backends.torch.sampling.draws import make_draws
from plugserve.backends.torch.sampling.sampler import Sampler
from tests.core.engine.test_combinations import PARAMS, comparable, model, prompts  # noqa: F401
from tests.core.harness import LocalEngine

MAX_TOKENS = 16


class PlainOnCpu:
    """PlainSteps in torch: counts the rows that it draws."""

    def __init__(self, steps):
        self._steps = steps
        self.num_drawn = 0

    def draw(self, logits, rows, num_known):
        state = self._steps.state
        self.num_drawn += len(rows)
        needs, kinds = state.table.needs.copy(), state.table.kinds.copy()
        state.table.needs[:] = 0
        state.table.kinds[:] = [0 if t == 0 else 1 for t in state.table.scalars["temperature"]]
        draws = make_draws(rows.tolist(), num_known.tolist(), torch.device("cpu"))
        drawn = Sampler(state).sample(logits.float().clone(), draws)
        state.table.needs[:], state.table.kinds[:] = needs, kinds
        return drawn.tokens.int()


@pytest.fixture
def expected(model, prompts):  # noqa: F811
    with LocalEngine(*model) as local:
        return local.generate_all(prompts, PARAMS, max_tokens=MAX_TOKENS)


def test_a_mixed_batch_draws_what_one_sampler_draws(model, prompts, expected):  # noqa: F811
    with LocalEngine(*model) as local:
        steps = local.runner.loaded.steps
        steps.plain = plain = PlainOnCpu(steps)
        done = local.generate_all(prompts, PARAMS, max_tokens=MAX_TOKENS)
        assert comparable(done) == comparable(expected)
        assert plain.num_drawn > 0


def test_rows_that_need_the_sampler_get_only_their_own_logits(model, prompts):  # noqa: F811
    """A feature costs the rows that ask for it: the sampler never sees the others."""
    sizes = []
    with LocalEngine(*model) as local:
        steps = local.runner.loaded.steps
        steps.plain = PlainOnCpu(steps)
        sample = steps.sampler.sample

        def watched(logits, draws, *rest):
            sizes.append((len(logits), len(draws)))
            return sample(logits, draws, *rest)

        steps.sampler.sample = watched
        params = [{"top_k": 3, "temperature": 1.0}] + [{}] * (len(prompts) - 1)
        local.generate_all(prompts, params, max_tokens=8)
    assert set(sizes) == {(1, 1)}
