"""The row table: what the host knows of device rows."""

import numpy as np
import pytest

from plugserve.core.contracts.runner import NewRow, StepInput
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.rows.row_table import DrawKind, Need, RowTable

VOCAB = 100


def step(new_rows=(), freed_rows=()):
    return StepInput(0, list(new_rows), list(freed_rows), [], [], [], [])


def new_row(row, *, stop_ids=(), num_computed=0, **fields):
    params = SamplingParams(max_tokens=9, seed=3, **fields)
    return NewRow(row, [1, 2, 3], 3, num_computed, [], params, stop_ids)


@pytest.mark.parametrize(
    ("fields", "kind", "needs"),
    [
        ({"temperature": 0.0, "top_k": 5}, DrawKind.GREEDY, Need.NOTHING),
        ({}, DrawKind.WHOLE, Need.NOTHING),
        ({"top_k": VOCAB}, DrawKind.WHOLE, Need.NOTHING),
        ({"min_p": 0.1}, DrawKind.MIN_P, Need.NOTHING),
        ({"top_k": 5, "top_p": 0.5}, DrawKind.TOP_K, Need.NOTHING),
        ({"top_p": 0.5, "min_p": 0.1}, DrawKind.TOP_P, Need.NOTHING),
        ({"repetition_penalty": 1.1}, DrawKind.WHOLE, Need.REPETITION),
        ({"presence_penalty": 1.0}, DrawKind.WHOLE, Need.COUNTS),
        ({"frequency_penalty": 1.0}, DrawKind.WHOLE, Need.COUNTS),
        ({"logit_bias": {1: 1.0}}, DrawKind.WHOLE, Need.BIAS),
        ({"min_tokens": 2, "stop_ids": (4,)}, DrawKind.WHOLE, Need.STOP_IDS),
        ({"min_tokens": 2}, DrawKind.WHOLE, Need.NOTHING),
        ({"allowed_token_ids": (1,)}, DrawKind.WHOLE, Need.ALLOWED),
        ({"bad_words": ((1,),)}, DrawKind.WHOLE, Need.BAD_WORDS),
        ({"grammar": "x"}, DrawKind.WHOLE, Need.GRAMMAR),
        ({"num_logprobs": 0}, DrawKind.WHOLE, Need.LOGPROBS),
    ],
)
def test_parameters_become_a_kind_and_needs(fields, kind, needs):
    table = RowTable(4, VOCAB)
    table.apply(step([new_row(2, **fields)]))
    assert table.kinds[2] == kind
    assert table.needs[2] == needs
    needs_full = bool(needs) or kind not in (DrawKind.GREEDY, DrawKind.WHOLE)
    assert table.rows_needing_full_sampler == ({2} if needs_full else set())


def test_columns_hold_the_parameters_by_row():
    table = RowTable(4, VOCAB)
    table.apply(step([new_row(0, temperature=0.5), new_row(3, top_k=7, frequency_penalty=0.25)]))
    assert table.scalars["temperature"][[0, 3]].tolist() == [0.5, 1.0]
    assert table.scalars["top_k"][[0, 3]].tolist() == [0, 7]
    assert table.scalars["frequency_penalty"][3] == np.float32(0.25)
    assert table.scalars["num_prompt_tokens"][3] == 3


def test_a_freed_row_is_forgotten_and_a_row_taken_again_starts_anew():
    table = RowTable(2, VOCAB)
    table.apply(step([new_row(0, top_k=5, num_prompt_logprobs=1, num_computed=2)]))
    table.advance([0], [1])
    assert table.num_computed_of([0]) == [3]
    assert table.hidden_rows == {0}
    table.apply(step([new_row(0)], [0]))
    assert table.num_computed_of([0]) == [0]
    assert not table.hidden_rows
    assert not table.rows_needing_full_sampler
    table.apply(step((), [0]))
    assert not table.rules
