"""The batched sampler against core's reference in float64: every feature alone, all together, and mixed batches."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from plugserve.backends.torch.runner.device_state import DeviceState
from plugserve.backends.torch.sampling.draws import TokenMasks, make_draws
from plugserve.backends.torch.sampling.sampler import Sampler
from plugserve.core.contracts.runner import NewRow, StepInput
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.sampling_law.reference import adjust, distribution, next_token, weigh

CPU = torch.device("cpu")
VOCAB = 700


def random_params(rng, known):
    """A value for every feature."""
    words = tuple((*known[len(known) - n :], rng.randrange(VOCAB)) for n in (0, 1, min(3, len(known))))
    return {
        "temperature": rng.choice([0.3, 0.7, 1.3, 2.0]),
        "top_k": rng.choice([1, 5, 50, 10 * VOCAB]),
        "top_p": rng.choice([0.05, 0.5, 0.9, 0.999]),
        "min_p": rng.choice([0.01, 0.2]),
        "repetition_penalty": rng.choice([0.8, 1.2, 2.0]),
        "presence_penalty": rng.choice([-0.5, 0.7]),
        "frequency_penalty": rng.choice([-0.5, 0.4]),
        "logit_bias": {rng.randrange(VOCAB): rng.uniform(-5, 5) for _ in range(4)},
        "min_tokens": rng.choice([2, 8]),
        "allowed_token_ids": tuple(rng.sample(range(VOCAB), rng.randint(3, 200))),
        "bad_words": words,
        "num_logprobs": 2,
    }


FEATURES = {
    "greedy": (),
    "temperature": ("temperature",),
    "top_k": ("temperature", "top_k"),
    "top_p": ("temperature", "top_p"),
    "min_p": ("temperature", "min_p"),
    "filters": ("temperature", "top_k", "top_p", "min_p"),
    "nucleus and min_p": ("temperature", "top_p", "min_p"),
    "greedy penalties": ("repetition_penalty", "presence_penalty", "frequency_penalty"),
    "penalties": ("temperature", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    "bias": ("logit_bias",),
    "min_tokens": ("min_tokens",),
    "allowed": ("temperature", "allowed_token_ids"),
    "bad words": ("bad_words",),
    "all": tuple(random_params(random.Random(0), [0])),
}


def random_rows(rng, features):
    """NewRows, and the words of the masks that some of them have."""
    rows, words = [], {}
    for row, feature in enumerate(features):
        prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 12))]
        generated = [rng.choice([*prompt, rng.randrange(VOCAB)]) for _ in range(rng.randint(0, 10))]
        chosen = random_params(rng, prompt + generated)
        fields = {"temperature": 0.0} | {name: chosen[name] for name in FEATURES[feature]}
        params = SamplingParams(max_tokens=99, seed=rng.getrandbits(60), **fields)
        stop_ids = tuple(rng.sample(range(VOCAB), 2))
        rows.append(NewRow(row, prompt + generated, len(prompt), 0, [], params, stop_ids))
        if rng.random() < 0.2:
            words[row] = [rng.getrandbits(32) for _ in range(-(-VOCAB // 32))]
    return rows, words


def make_state(rows):
    state = DeviceState(len(rows), 64, 16, VOCAB, CPU)
    state.apply(StepInput(0, rows, [], [], [], [], []))
    return state, make_draws([new.row for new in rows], [len(new.token_ids) for new in rows], CPU)


def bits(words):
    return ((np.array(words, dtype=np.int64)[:, None] >> np.arange(32)) & 1).astype(bool).reshape(-1)[:VOCAB]


@pytest.mark.parametrize("feature", [*FEATURES, "mixed"])
def test_draws_are_the_references(feature):
    rng = random.Random(feature)
    generator = torch.Generator().manual_seed(1)
    for _ in range(12):
        rows, words = random_rows(rng, rng.choices(list(FEATURES), k=8) if feature == "mixed" else [feature] * 6)
        state, draws = make_state(rows)
        logits = torch.randn(len(rows), VOCAB, generator=generator) * rng.choice([0.5, 2.0, 4.0])
        masks = None
        if words:
            packed = np.array(list(words.values()), dtype=np.uint32).view(np.int32)
            masks = TokenMasks(list(words), torch.from_numpy(packed))
        drawn = Sampler(state).sample(logits.clone(), draws, masks).tokens.tolist()
        expected = [
            next_token(
                logits[row].numpy(),
                state.table.rules[row],
                new.token_ids,
                bits(words[row]) if row in words else None,
            )
            for row, new in enumerate(rows)
        ]
        assert drawn == expected


def test_distributions_are_the_references():
    """What drafts are verified against is what tokens are drawn from."""
    rng = random.Random(3)
    rows, _ = random_rows(rng, list(FEATURES))
    state, draws = make_state(rows)
    sampler = Sampler(state)
    logits = torch.randn(len(rows), VOCAB, generator=torch.Generator().manual_seed(5)) * 2
    adjusted = logits.clone()
    sampler.adjust(adjusted, draws)
    probs = sampler.distributions(adjusted, draws)
    for row, new in enumerate(rows):
        rule = state.table.rules[row]
        values = adjust(logits[row].numpy(), rule, new.token_ids)
        assert np.allclose(adjusted[row].numpy(), values, atol=1e-5)
        assert np.allclose(probs[row].numpy(), distribution(weigh(values, rule.params), VOCAB), atol=1e-5)


def test_a_row_that_stands_there_several_times_is_adjusted_by_each_history():
    """So drafts are verified: each place knows the drafts before it."""
    params = SamplingParams(max_tokens=9, seed=0, temperature=0.0, presence_penalty=100.0)
    state, _ = make_state([NewRow(0, [1, 2, 7, 8, 9], 2, 0, [], params, ())])
    logits = torch.zeros(4, VOCAB)
    logits[:, 7], logits[:, 8], logits[:, 9], logits[:, 3] = 4.0, 3.0, 2.0, 1.0
    drawn = Sampler(state).sample(logits, make_draws([0] * 4, [2, 3, 4, 5], CPU))
    assert drawn.tokens.tolist() == [7, 8, 9, 3]


def test_a_row_that_is_filled_again_forgets_its_lists():
    banned = SamplingParams(max_tokens=9, seed=0, temperature=0.0, bad_words=((5,),), logit_bias={6: -100.0})
    state, draws = make_state([NewRow(0, [1], 1, 0, [], banned, ())])
    sampler = Sampler(state)
    logits = torch.zeros(1, VOCAB)
    logits[0, 5], logits[0, 6], logits[0, 7] = 3.0, 2.0, 1.0
    assert sampler.sample(logits.clone(), draws).tokens.tolist() == [7]
    other = SamplingParams(max_tokens=9, seed=0, temperature=0.0, bad_words=((6,),), logit_bias={5: -100.0})
    state.apply(StepInput(1, [NewRow(0, [1], 1, 0, [], other, ())], [0], [], [], [], []))
    assert sampler.sample(logits.clone(), draws).tokens.tolist() == [7]
    plain = SamplingParams(max_tokens=9, seed=0, temperature=0.0)
    state.apply(StepInput(2, [NewRow(0, [1], 1, 0, [], plain, ())], [0], [], [], [], []))
    assert sampler.sample(logits.clone(), draws).tokens.tolist() == [5]
