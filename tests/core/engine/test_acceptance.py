"""How many drafts pay."""

from __future__ import annotations

import random

import pytest

from plugserve.core.engine.acceptance import Acceptance, DraftPolicy


def run(policy, *, rate, num_steps, num_rows=1, base_s, per_token_s, seed=0):
    """Steps of num_rows rows whose drafts are kept with probability rate, timed by a line; drafts by step and row."""
    rng = random.Random(seed)
    rows = [Acceptance() for _ in range(num_rows)]
    chosen = []
    for _ in range(num_steps):
        policy.begin_step(num_rows, num_rows)
        drafts = [policy.num_drafts(row) for row in rows]
        kept = [next((i for i in range(n) if rng.random() >= rate), n) for n in drafts]
        for row, n, k in zip(rows, drafts, kept, strict=True):
            policy.observe_sequence(row, n, k)
        num_tokens = num_rows + sum(drafts)
        policy.observe_step(num_rows, num_tokens, num_rows + sum(kept), base_s + per_token_s * num_tokens)
        chosen.append(drafts)
    return chosen


def mean(chosen):
    late = [n for drafts in chosen[len(chosen) // 2 :] for n in drafts]
    return sum(late) / len(late)


def test_good_drafts_are_taken_in_full_where_tokens_are_cheap():
    assert mean(run(DraftPolicy(5), rate=0.95, num_steps=400, base_s=0.01, per_token_s=0.0002)) > 4.5


def test_bad_drafts_are_given_up_and_tried_again_now_and_then():
    chosen = run(DraftPolicy(5), rate=0.05, num_steps=2000, base_s=0.01, per_token_s=0.004)
    assert mean(chosen) < 0.05
    assert 1 <= sum(map(sum, chosen[1000:])) <= 20


def test_a_request_whose_text_turns_predictable_drafts_again():
    policy = DraftPolicy(5)
    run(policy, rate=0.0, num_steps=300, base_s=0.01, per_token_s=0.002)
    assert mean(run(policy, rate=1.0, num_steps=1500, base_s=0.01, per_token_s=0.0002)) > 4


def test_a_batch_bound_by_arithmetic_does_not_speculate():
    """Each token costs nearly what it costs alone: even drafts that are mostly right don't pay."""
    assert mean(run(DraftPolicy(5), rate=0.8, num_steps=600, num_rows=64, base_s=0.001, per_token_s=0.001)) < 0.1


@pytest.mark.parametrize("rate", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("per_token_s", [0.0002, 0.001, 0.003])
def test_choices_come_near_the_best_fixed_length(rate, per_token_s):
    """Time per token within 10 % of what the best constant number of drafts gives."""
    base_s, num_rows = 0.01, 4

    def seconds_per_token(k):
        kept = sum(rate**j for j in range(1, k + 1))
        return (base_s + per_token_s * num_rows * (1 + k)) / (num_rows * (1 + kept))

    chosen = run(DraftPolicy(6), rate=rate, num_steps=1500, num_rows=num_rows, base_s=base_s, per_token_s=per_token_s)
    late = chosen[500:]
    seconds = sum(base_s + per_token_s * (num_rows + sum(drafts)) for drafts in late)
    tokens = sum(1 + sum(rate**j for j in range(1, n + 1)) for drafts in late for n in drafts)
    assert seconds / tokens < 1.1 * min(seconds_per_token(k) for k in range(7))


def test_without_adaptation_the_most_is_drafted():
    assert run(DraftPolicy(3, is_adaptive=False), rate=0.0, num_steps=20, base_s=1, per_token_s=1) == [[3]] * 20
