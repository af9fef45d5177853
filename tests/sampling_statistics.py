"""Whether runs of tokens are distributed as a target: chi-square, and a chain whose joint distribution is known.

The chain's next token has the logits TABLE[last token]; drafts come from DRAFT_TABLE.
"""

from __future__ import annotations

import math

import pytest
import torch

VOCAB, LENGTH, NUM_RUNS = 5, 3, 17_000  # 51,000 draws
FIRST = 2  # the prompt's last token
TABLE = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1.5
DRAFT_TABLE = TABLE + torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def chi_square_limit(degrees, deviations=4.0):
    """The chi-square quantile that is exceeded as rarely as a normal variable by deviations (Wilson and Hilferty)."""
    return degrees * (1 - 2 / (9 * degrees) + deviations * math.sqrt(2 / (9 * degrees))) ** 3


def assert_distributed(counts, probs):
    """counts by outcome against probs by outcome: chi-square over outcomes that are expected often, none impossible."""
    total = sum(counts.values())
    assert sum(probs.values()) == pytest.approx(1.0)
    assert all(probs[outcome] > 0 for outcome in counts)
    likely = [outcome for outcome, p in probs.items() if p * total >= 10]
    statistic = sum((counts.get(o, 0) - total * probs[o]) ** 2 / (total * probs[o]) for o in likely)
    assert statistic < chi_square_limit(max(1, len(likely) - 1)), f"{statistic} over {len(likely)} outcomes"
    distance = sum(abs(counts.get(outcome, 0) / total - p) for outcome, p in probs.items()) / 2
    assert distance < math.sqrt(len(probs) / total)


def joint(next_probs):
    """The probability of each run of LENGTH tokens when next_probs(tokens so far) is the next one's distribution."""
    runs = {(): 1.0}
    for _ in range(LENGTH):
        runs = {(*run, t): p * q for run, p in runs.items() for t, q in enumerate(next_probs(run)) if q > 0}
    return runs


def count(runs):
    counts = {}
    for run in runs:
        counts[tuple(run[:LENGTH])] = counts.get(tuple(run[:LENGTH]), 0) + 1
    return counts
