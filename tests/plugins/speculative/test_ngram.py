"""N-gram lookup equals a plain search."""

from __future__ import annotations

import random

import pytest
import torch
from pydantic import ValidationError

from plugserve.core.contracts.drafting import DraftStep
from plugserve.plugins.speculative.ngram import NgramOptions, NgramProposer


def plain_drafts(known, k, max_n, min_n):
    """The longest n-gram's newest match with k tokens after it, else the match with the most tokens after it."""
    for n in range(max_n, min_n - 1, -1):
        if len(known) <= n:
            continue
        starts = [s for s in range(len(known) - n) if known[s : s + n] == known[-n:]]
        long = [s for s in starts if s + n + k <= len(known)]
        if starts:
            end = (long[-1] if long else starts[0]) + n
            return known[end : end + k]
    return []


def propose(histories, num_drafts, max_n=4, min_n=2):
    width = max(map(len, histories)) + 7
    tokens = torch.full((len(histories) + 3, width), 5, dtype=torch.int32)
    rows = list(range(2, len(histories) + 2))[::-1]
    for row, known in zip(rows, histories, strict=True):
        tokens[row, : len(known)] = torch.tensor(known)
    lengths = [len(known) for known in histories]
    step = DraftStep(ids=rows, rows=rows, lengths=lengths, num_drafts=num_drafts, tokens=tokens)
    drafts = NgramProposer(max_n, min_n).propose(step, max(num_drafts))
    assert drafts.probs is None
    return [row[:count] for row, count in zip(drafts.tokens.tolist(), drafts.counts, strict=True)]


def test_earlier_continuation_is_drafted():
    assert propose([[1, 2, 3, 4, 9, 8, 2, 3]], [3]) == [[4, 9, 8]]


def test_no_match_drafts_nothing():
    assert propose([[1, 2, 3, 4], [7]], [3, 3]) == [[], []]


def test_drafts_do_not_depend_on_the_batch():
    rng = random.Random(3)
    histories = [[rng.randrange(4) for _ in range(rng.randint(1, 60))] for _ in range(40)]
    wanted = [rng.randint(1, 5) for _ in histories]
    got = propose(histories, wanted)
    for known, most, drafts in zip(histories, wanted, got, strict=True):
        assert drafts == plain_drafts(known, max(wanted), 4, 2)[:most]
    assert any(got)


def test_a_loop_is_drafted_to_the_full_length():
    assert propose([[6, 1, 2, 1, 2, 1, 2, 1, 2]], [4]) == [[1, 2, 1, 2]]


def test_options_are_checked():
    with pytest.raises(ValidationError, match="is above max-n"):
        NgramOptions(max_n=2, min_n=3)
