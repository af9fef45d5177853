"""The reference of speculative sampling: what comes out is distributed as the target, whatever is drafted."""

from __future__ import annotations

import random

import pytest

from plugserve.core.sampling_law.draft_verification import verify
from tests.sampling_statistics import (
    DRAFT_TABLE,
    FIRST,
    LENGTH,
    NUM_RUNS,
    TABLE,
    VOCAB,
    assert_distributed,
    count,
    joint,
)


@pytest.mark.parametrize("is_drawn", [False, True], ids=["without chance", "drawn from q"])
def test_the_reference_follows_the_target(is_drawn):
    p = TABLE.softmax(-1).tolist()
    q = DRAFT_TABLE.softmax(-1).tolist()
    rng = random.Random(5)
    runs, num_kept = [], 0
    for _ in range(NUM_RUNS):
        run = []
        while len(run) < LENGTH:
            drafts, last = [], (run or [FIRST])[-1]
            for _ in range(2):
                before = (drafts or [last])[-1]
                drafts.append(rng.choices(range(VOCAB), q[before])[0] if is_drawn else (before + 1) % VOCAB)
            history = [last, *drafts]
            gained = verify(
                [p[token] for token in history],
                drafts,
                [q[token] for token in history[:-1]] if is_drawn else None,
                [rng.random() for _ in range(3)],
                [rng.random() for _ in range(3)],
            )
            num_kept += len(gained) - 1
            run += gained
        runs.append(run)
    assert_distributed(count(runs), joint(lambda run: p[(run or (FIRST,))[-1]]))
    assert num_kept > NUM_RUNS / 4


def test_the_reference_never_keeps_what_the_target_excludes():
    target = [[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]
    assert verify(target, [0], [[1.0, 0.0, 0.0]], [0.0, 0.0], [0.999999, 0.5]) == [2]
    assert verify(target, [0], None, [0.0, 0.0], [0.0, 0.5]) == [1]
    assert verify(target, [2], [[0.0, 0.0, 1.0]], [0.49, 0.0], [0.0, 0.0]) == [2, 0]
    assert verify(target, [2], [[0.0, 0.0, 1.0]], [0.51, 0.0], [0.0, 0.0]) == [1]
