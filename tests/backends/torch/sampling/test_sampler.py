"""The law of sampling against Hugging Face's logits processors and against plain formulas."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from plugserve.backends.torch.runner.device_state import DeviceState
from plugserve.backends.torch.sampling.draws import TokenMasks, make_draws
from plugserve.backends.torch.sampling.inverse_cdf import uniform
from plugserve.backends.torch.sampling.sampler import Sampler
from plugserve.core.contracts.runner import NewRow, StepInput
from plugserve.core.contracts.sampling import SamplingParams

VOCAB = 60
PROMPT = [3, 5, 5, 9]


CPU = torch.device("cpu")


def sample(logits, params, *, generated=(), stop_ids=(), masks=None):
    """Draw one token a row; params is one SamplingParams a row, logits [1, V] are all rows' or [B, V]. masks are words
    by row. Returns tokens, and logprobs by row."""
    state = DeviceState(len(params), 64, 16, logits.shape[1], CPU)
    tokens = PROMPT + list(generated)
    rows = [NewRow(row, tokens, len(PROMPT), 0, [], one, stop_ids) for row, one in enumerate(params)]
    state.apply(StepInput(1, rows, [], [], [], [], []))
    draws = make_draws(range(len(params)), [len(tokens)] * len(params), CPU)
    token_masks = TokenMasks(list(masks), torch.stack(list(masks.values()))) if masks else None
    drawn = Sampler(state).sample(logits.expand(len(params), -1).clone(), draws, token_masks)
    entries = drawn.logprobs.describe() if drawn.logprobs else []
    return drawn.tokens.tolist(), dict(zip(drawn.wanting, entries, strict=True))


def params(seed=0, **fields):
    return SamplingParams(max_tokens=9, seed=seed, **fields)


def some_logits(seed=0):
    return torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


FILTERS = {
    "temperature": ({"temperature": 0.7}, [TemperatureLogitsWarper(0.7)]),
    "top_k": ({"top_k": 5}, [TopKLogitsWarper(5)]),
    "top_p": ({"top_p": 0.8}, [TopPLogitsWarper(0.8)]),
    "tiny top_p": ({"top_p": 1e-6}, [TopPLogitsWarper(1e-6)]),
    "min_p": ({"min_p": 0.1}, [MinPLogitsWarper(0.1)]),
    "top_k beyond the vocabulary": ({"top_k": 500}, []),
    "all": (
        {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
        [TemperatureLogitsWarper(1.3), TopKLogitsWarper(20), TopPLogitsWarper(0.9), MinPLogitsWarper(0.05)],
    ),
}


@pytest.mark.parametrize("name", FILTERS)
def test_draws_follow_hugging_faces_distribution(name):
    fields, warpers = FILTERS[name]
    logits, num_draws = some_logits(), 6000
    expected = LogitsProcessorList(warpers)(torch.tensor([PROMPT]), logits.clone()).softmax(-1)[0].double()
    drawn, _ = sample(logits, [params(seed, **fields) for seed in range(num_draws)])
    counts = torch.bincount(torch.tensor(drawn), minlength=VOCAB).double()
    assert counts[expected == 0].sum() == 0, "a token that is filtered out was drawn"
    likely = expected * num_draws >= 5
    chi_square = ((counts - expected * num_draws)[likely] ** 2 / (expected * num_draws)[likely]).sum()
    freedom = max(1, int(likely.sum()) - 1)
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5 + 5


def test_wide_nucleus_needs_the_full_sort():
    logits = torch.zeros(1, 1000)  # flat: 0.9 of it is far more than the first trial's candidates
    drawn, _ = sample(logits, [params(seed, top_p=0.9) for seed in range(3000)])
    assert len(set(drawn)) > 800
    assert max(drawn) < 900  # stable order among equals


def test_wide_vocabulary_is_drawn_from_as_told():
    """600 tokens take several blocks of the two-level search, the last one padded."""
    logits = torch.full((1, 600), -torch.inf)
    logits[0, [0, 255, 256, 511, 599]] = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25]).log()
    drawn, _ = sample(logits, [params(seed) for seed in range(4000)])
    counts = torch.bincount(torch.tensor(drawn), minlength=600) / 4000
    assert counts[[0, 255, 256, 511, 599]].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.15, 0.25], abs=0.03)
    assert counts.sum() == pytest.approx(1.0)


def test_rows_with_narrow_and_wide_nuclei_are_drawn_side_by_side():
    narrow, wide = torch.zeros(1, 6000), torch.zeros(1, 6000)
    narrow[0, 17] = 50.0
    all_params = [params(1, top_p=0.5), params(2, top_p=0.99), params(3, top_p=0.02)]
    drawn, _ = sample(torch.cat([narrow, wide, wide]), all_params)
    assert drawn[0] == 17
    assert drawn[1] < 5940
    for n, one in enumerate(all_params):
        alone = sample([narrow, wide, wide][n], [one])[0]
        assert drawn[n] == alone[0]


def test_greedy_takes_the_best_whatever_the_filters():
    logits = some_logits()
    drawn, _ = sample(logits, [params(temperature=0.0, top_k=3, top_p=0.1), params(temperature=0.0)])
    assert drawn == [int(logits.argmax())] * 2


def test_draw_depends_on_seed_and_position_alone():
    logits = some_logits()
    alone, _ = sample(logits, [params(42)])
    crowd, _ = sample(logits, [params(1), params(42), params(3, top_k=2), params(42, temperature=0.0), params(42)])
    assert crowd[1] == crowd[4] == alone[0]
    seeds = torch.arange(50)
    assert uniform(seeds, torch.zeros(50).long()).unique().numel() == 50
    assert uniform(torch.zeros(50).long(), torch.arange(50)).unique().numel() == 50


def test_random_numbers_are_uniform():
    numbers = uniform(torch.arange(-50_000, 50_000), torch.full((100_000,), 17))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, bins=100, min=0, max=1)
    assert ((counts - 1000) ** 2 / 1000).sum() < 99 + 5 * (2 * 99) ** 0.5


def test_repetition_penalty_equals_hugging_face():
    logits, generated = some_logits(), [7, 7, 11]
    seen = torch.tensor([PROMPT + generated])
    expected = RepetitionPenaltyLogitsProcessor(1.8)(seen, logits.clone()).log_softmax(-1)
    drawn, _ = sample(logits, [params(0, temperature=0.0, repetition_penalty=1.8)], generated=generated)
    assert drawn[0] == int(expected.argmax())
    best = int(logits.argmax())
    drawn, _ = sample(logits, [params(0, temperature=0.0, repetition_penalty=1e6)], generated=[best])
    assert drawn[0] != best


def test_presence_and_frequency_penalties_count_generated_tokens_only():
    logits = torch.zeros(1, VOCAB)
    logits[0, 3], logits[0, 20], logits[0, 30] = 5.0, 4.9, 4.8  # 3 is in the prompt: not penalised
    generated = [20, 20, 30]
    assert sample(logits, [params(temperature=0.0, frequency_penalty=2.0)], generated=generated)[0] == [3]
    logits[0, 3] = 0.0
    assert sample(logits, [params(temperature=0.0)], generated=generated)[0] == [20]
    assert sample(logits, [params(temperature=0.0, frequency_penalty=0.2)], generated=generated)[0] == [30]
    assert sample(logits, [params(temperature=0.0, presence_penalty=2.0)], generated=generated)[0] == [20]
    logits[0, 40] = 4.0
    assert sample(logits, [params(temperature=0.0, presence_penalty=2.0)], generated=generated)[0] == [40]


def test_logit_bias_forces_and_bans():
    logits = some_logits()
    best = int(logits.argmax())
    drawn, _ = sample(
        logits, [params(temperature=0.0, logit_bias={17: 100.0}), params(temperature=0.0, logit_bias={best: -100.0})]
    )
    assert drawn[0] == 17
    assert drawn[1] != best


def test_min_tokens_holds_stop_tokens_back():
    logits = torch.zeros(1, VOCAB)
    logits[0, 8], logits[0, 9] = 10.0, 9.0
    held = params(temperature=0.0, min_tokens=2)
    assert sample(logits, [held], generated=[1], stop_ids=(8,))[0] == [9]
    assert sample(logits, [held], generated=[1, 2], stop_ids=(8,))[0] == [8]


def test_mask_leaves_only_what_it_allows():
    words = torch.zeros(2, dtype=torch.int32)
    words[0], words[1] = 1 << 5 | -(1 << 31), 1 << 3  # tokens 5, 31 and 35
    logits = some_logits()
    drawn, _ = sample(logits, [params(seed) for seed in range(300)], masks=dict.fromkeys(range(0, 300, 2), words))
    assert set(drawn[::2]) == {5, 31, 35}
    assert len(set(drawn[1::2])) > 10
    drawn, _ = sample(logits, [params(temperature=0.0)], masks={0: words})
    assert drawn[0] == max((5, 31, 35), key=lambda token: logits[0, token])


def test_grammar_that_allows_only_the_end_wins_over_min_tokens():
    words = torch.zeros(2, dtype=torch.int32)
    words[0] = 1 << 8
    for temperature in (0.0, 1.0):
        held = params(temperature=temperature, min_tokens=5)
        assert sample(some_logits(), [held], stop_ids=(8,), masks={0: words})[0] == [8]


def test_logprobs_are_of_the_raw_distribution():
    logits = some_logits()
    raw = logits.log_softmax(-1)[0]
    one = params(5, temperature=0.5, top_k=4, logit_bias={1: 50.0}, num_logprobs=3)
    drawn, logprobs = sample(logits, [params(1), one, params(2, num_logprobs=0)])
    entry = logprobs[1]
    assert entry.token_id == drawn[1]
    assert entry.logprob == pytest.approx(raw[drawn[1]].item(), abs=1e-5)
    assert entry.rank == int((raw > raw[drawn[1]]).sum()) + 1
    assert entry.top_ids == raw.topk(3).indices.tolist()
    assert entry.top_logprobs == pytest.approx(raw.topk(3).values.tolist(), abs=1e-5)
    assert 0 not in logprobs
    assert logprobs[2].top_ids == []


def test_logits_that_are_not_numbers_do_not_break_other_rows():
    logits = torch.cat([some_logits(), torch.full((1, VOCAB), float("nan"))])
    drawn, _ = sample(logits, [params(3, top_p=0.5)] * 2)
    assert drawn == [sample(some_logits(), [params(3, top_p=0.5)])[0][0], -1]


# ---------------------------------------------------------------- allowed tokens and bad words


def test_only_allowed_tokens_are_drawn():
    logits = some_logits()
    drawn, _ = sample(logits, [params(seed, allowed_token_ids=(4, 8, 15)) for seed in range(300)])
    assert set(drawn) == {4, 8, 15}
    best = max((4, 8, 15), key=lambda token: logits[0, token])
    assert sample(logits, [params(temperature=0.0, allowed_token_ids=(4, 8, 15))])[0] == [best]


@pytest.mark.parametrize(
    ("generated", "word", "is_banned"),
    [
        ([], (30,), True),
        ([7], (7, 30), True),
        ([7, 8], (7, 8, 30), True),
        ([8], (7, 30), False),
        ([7, 8], (7, 30), False),
        ([8], (7, 8, 30), False),
        ([7], (9, 7, 30), True),  # the prompt ends with 9
        ([], (3, 5, 5, 9, 30), True),
        ([], (1, 3, 5, 5, 9, 30), False),  # longer than what is known
        ([], tuple(range(40)), False),
    ],
)
def test_last_token_of_a_bad_word_is_banned_after_its_beginning_alone(generated, word, is_banned):
    logits = some_logits()
    logits[0, 30] = 50.0
    drawn, _ = sample(logits, [params(temperature=0.0, bad_words=(word,))], generated=generated)
    assert (drawn[0] != 30) == is_banned
    crowd = ((2,), word, (7, 8, 9, 10, 30), (1, 30))  # words of other lengths, and with the same last token
    drawn, _ = sample(logits, [params(temperature=0.0, bad_words=crowd)], generated=generated)
    assert (drawn[0] != 30) == is_banned


def test_filter_of_one_row_leaves_the_others_alone():
    logits = some_logits()
    best = int(logits.argmax())
    rows = [params(temperature=0.0), params(temperature=0.0, bad_words=((best,),)), params(temperature=0.0)]
    drawn, _ = sample(logits, rows)
    assert drawn[0] == drawn[2] == best
    assert drawn[1] == int(logits[0].argsort(descending=True)[1])


def test_bad_words_and_allowed_tokens_hold_together():
    drawn, _ = sample(some_logits(), [params(seed, allowed_token_ids=(4, 8), bad_words=((8,),)) for seed in range(50)])
    assert set(drawn) == {4}


def test_many_rows_are_drawn_some_at_a_time(monkeypatch):
    """With the tokens, logprobs and masks of all at once."""
    rows = [
        params(seed, temperature=temperature, **fields)
        for seed, (temperature, fields) in enumerate(
            [(t, f) for t in (0.0, 1.0) for f in ({}, {"top_p": 0.8}, {"top_k": 5}, {"min_p": 0.1})]
            + [(1.0, {"num_logprobs": 2}), (1.0, {"repetition_penalty": 1.5}), (0.0, {"num_logprobs": 5})]
        )
    ]
    logits = torch.randn(len(rows), VOCAB, generator=torch.Generator().manual_seed(1)) * 2
    allowed = torch.tensor([0, 0b111 << 4], dtype=torch.int32)  # tokens 36 to 38
    masks = {0: allowed, 7: allowed, 9: allowed}
    logits[3] = float("nan")
    expected = sample(logits, rows, masks=masks)
    assert expected[0][3] == -1
    assert {expected[0][row] for row in masks} <= {36, 37, 38}
    assert sorted(expected[1]) == [8, 10]
    for size in (1, 2, 3, 8, 10):
        monkeypatch.setattr("plugserve.backends.torch.sampling.sampler._MOST_LOGITS", size * VOCAB)
        assert sample(logits, rows, masks=masks) == expected, size
