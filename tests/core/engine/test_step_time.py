"""The fit of a step's duration finds what made the durations."""

from __future__ import annotations

import random

import pytest

from plugserve.core.contracts.scheduling import StepTime
from plugserve.core.engine.step_time import StepTimeFit

TRUE = StepTime(base_s=0.004, per_token_s=0.0006, per_row_s=0.0015, per_pair_s=2e-7)


def observe(fit, num_prompt_tokens, num_decoding, num_pairs, noise=0.0):
    duration_s = TRUE.predict_s(num_prompt_tokens + num_decoding, num_decoding, num_pairs)
    fit.observe(num_prompt_tokens, num_decoding, num_pairs, duration_s * (1 + noise))


def mixed(fit, num_steps, noise=0.0):
    rng = random.Random(0)
    for _ in range(num_steps):
        prompt = rng.choice([0, 0, rng.randint(1, 256)])
        rows = rng.randint(0 if prompt else 1, 16)
        pairs = prompt * rng.randint(prompt, 2000) + rows * rng.randint(10, 1000)
        observe(fit, prompt, rows, pairs, rng.uniform(-noise, noise))


def test_nothing_observed_predicts_nothing():
    assert StepTimeFit().fit() == StepTime()


def test_all_four_costs_are_found():
    fit = StepTimeFit()
    mixed(fit, 200)
    found = fit.fit()
    assert found.base_s == pytest.approx(TRUE.base_s, rel=0.02)
    assert found.per_token_s == pytest.approx(TRUE.per_token_s, rel=0.02)
    assert found.per_row_s == pytest.approx(TRUE.per_row_s, rel=0.02)
    assert found.per_pair_s == pytest.approx(TRUE.per_pair_s, rel=0.02)


def test_hours_of_decoding_do_not_wash_out_what_a_prompt_token_costs():
    fit = StepTimeFit()
    mixed(fit, 300, noise=0.05)
    for step in range(20_000):
        observe(fit, 0, 4, 4 * (100 + step % 500))
    assert fit.fit().predict_s(4 + 256, 4, 100_000) == pytest.approx(TRUE.predict_s(260, 4, 100_000), rel=0.15)


def test_steps_of_one_size_give_their_mean():
    fit = StepTimeFit()
    for duration_s in (0.01, 0.02, 0.03) * 20:
        fit.observe(0, 8, 800, duration_s)
    assert fit.fit().predict_s(8, 8, 800) == pytest.approx(0.02, rel=0.05)


def test_no_cost_is_below_zero():
    """Larger steps that take less time: the mean, not a negative slope."""
    fit = StepTimeFit(decay=1.0)
    for tokens in (10, 20, 30):
        fit.observe(tokens, 0, 0, 0.1 - tokens / 1000)
    found = fit.fit()
    assert min(found.base_s, found.per_token_s, found.per_row_s, found.per_pair_s) >= 0
    assert found.predict_s(20) == pytest.approx(0.08)


def test_the_past_is_forgotten():
    fit = StepTimeFit()
    for _ in range(500):
        fit.observe(0, 1, 10, 1.0)
    for _ in range(500):
        fit.observe(0, 1, 10, 0.1)
    assert fit.fit().predict_s(1, 1, 10) == pytest.approx(0.1, rel=0.1)
