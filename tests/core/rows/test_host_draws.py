"""Draws in numpy are those of the law, whatever a row asks for."""

from __future__ import annotations

import numpy as np
import pytest

from plugserve.core.contracts.runner import NewRow, StepInput
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.rows.host_draws import HostDraws
from plugserve.core.rows.host_logprobs import describe
from plugserve.core.rows.host_rows import HostRows
from plugserve.core.sampling_law.reference import next_token

VOCAB = 1200


def random_params(draw):
    def some(value, otherwise):
        return value if draw.random() < 0.4 else otherwise

    return SamplingParams(
        max_tokens=9,
        seed=int(draw.integers(1 << 62)),
        temperature=float(draw.choice([0.0, 0.3, 1.0, 1.7])),
        top_k=int(some(draw.choice([1, 2, 40, VOCAB - 1, VOCAB]), 0)),
        top_p=float(some(draw.choice([1e-6, 0.5, 0.95, 0.9999]), 1.0)),
        min_p=float(some(draw.choice([0.01, 0.5]), 0.0)),
        presence_penalty=float(some(0.7, 0.0)),
        frequency_penalty=float(some(-0.4, 0.0)),
        repetition_penalty=float(some(1.3, 1.0)),
        logit_bias=some({3: 5.0, 7: -100.0}, None),
        min_tokens=int(some(5, 0)),
        bad_words=some(((11,), (4, 12)), ()),
        allowed_token_ids=some(tuple(range(0, VOCAB, 3)), ()),
    )


@pytest.mark.parametrize("seed", range(40))
def test_draws_are_those_of_the_law(seed):
    draw = np.random.default_rng(seed)
    num_rows = 8
    rows = HostRows(num_rows, 64, 16, VOCAB)
    news = []
    for row in range(num_rows):
        known = draw.integers(0, VOCAB, int(draw.integers(2, 30))).tolist()
        news.append(NewRow(row, known, max(1, len(known) - 3), 0, [0, 1], random_params(draw), (1, 2)))
    rows.apply(StepInput(0, news, [], [], [], [], []))
    logits = (draw.standard_normal((num_rows, VOCAB)) * draw.choice([0.1, 3.0, 12.0])).astype(np.float32)
    logits[0, :9] = logits[0].max()  # equal ones
    masks = {2: draw.random(VOCAB) < 0.1}
    lengths = [len(new.token_ids) for new in news]
    found = HostDraws(rows).draw(logits, range(num_rows), lengths, masks)
    for row, new in enumerate(news):
        expected = next_token(logits[row], rows.table.rules[row], list(new.token_ids), masks.get(row))
        assert found[row] == expected, new.params


def test_a_row_of_nan_fails_alone():
    rows = HostRows(2, 64, 16, VOCAB)
    params = [SamplingParams(max_tokens=1, seed=0, temperature=t) for t in (0.0, 1.0)]
    rows.apply(StepInput(0, [NewRow(i, [1], 1, 0, [i], p, ()) for i, p in enumerate(params)], [], [], [], [], []))
    logits = np.zeros((2, VOCAB), dtype=np.float32)
    logits[:, 5] = 1
    logits[1, 7] = np.nan
    assert HostDraws(rows).draw(logits, [0, 1], [1, 1], {}) == [5, -1]


def test_logprobs_ranks_and_the_most_likely():
    logits = np.log(np.array([0.1, 0.4, 0.1, 0.25, 0.15], dtype=np.float32))
    found = describe(logits, 4, 3)
    assert (found.token_id, found.rank, found.top_ids) == (4, 3, [1, 3, 4])
    assert found.logprob == pytest.approx(np.log(0.15), abs=1e-6)
    assert found.top_logprobs == pytest.approx(np.log([0.4, 0.25, 0.15]).tolist(), abs=1e-6)
    assert describe(logits, 2, 5).top_ids == [1, 3, 4, 0, 2]
    assert describe(logits, 2, 0).top_ids == []
