"""A model that ranks share gives the tokens of the whole model, with every feature of the engine."""

from __future__ import annotations

import random

import pytest

from plugserve.core.engine.acceptance import DraftPolicy
from plugserve.core.errors import ConfigError
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from tests.backends.torch.models.test_families import CASES, TINY, build
from tests.core.harness import LocalEngine
from tests.lora_samples import adapter_tensors, write_adapter

FAMILIES = ("Llama, llama3", "Qwen2", "Qwen3, biases, window", "Phi3, longrope", "Gemma2", "Gemma3")
GREEDY_AND_MORE = [
    {},
    {"temperature": 0.9, "seed": 5},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "seed": 6},
    {"presence_penalty": 0.5, "repetition_penalty": 1.3, "num_logprobs": 2},
    {"temperature": 1.0, "min_p": 0.05, "logit_bias": {3: 4.0}, "seed": 7, "num_prompt_logprobs": 1},
]


def tiny(family, **changes):
    model, config = build(family, changes)
    return config, model.state_dict()


def prompts(*lengths):
    rng = random.Random(3)
    return [[rng.randrange(TINY["vocab_size"]) for _ in range(length)] for length in lengths]


def without_rounding(done):
    """Sums of parts differ in their last bits: logprobs to four places."""
    rounded = [
        [None if one is None else (one.token_id, round(one.logprob, 4)) for one in entry["logprobs"]] for entry in done
    ]
    return [(entry["tokens"], entry["finish"], values) for entry, values in zip(done, rounded, strict=True)]


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith(FAMILIES)])
def test_two_ranks_give_the_whole_models_tokens(case):
    family, changes = CASES[case]
    config, weights = tiny(family, **changes)
    results = []
    for num_ranks in (1, 2):
        with LocalEngine(config, weights, num_ranks=num_ranks, tokens=48) as local:
            results.append(local.generate(prompts(1, 25, 70, 130), max_tokens=8))
    assert results[1] == results[0]


@pytest.mark.parametrize(("heads", "kv_heads", "num_ranks"), [(6, 3, 3), (4, 1, 2), (4, 2, 4), (8, 2, 4)], ids=str)
def test_key_heads_are_cut_or_repeated(heads, kv_heads, num_ranks):
    config, weights = tiny(
        "Llama",
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        hidden_size=48,
        intermediate_size=24 * num_ranks,
    )
    results = []
    for ranks in (1, num_ranks):
        with LocalEngine(config, weights, num_ranks=ranks) as local:
            results.append(local.generate(prompts(5, 40), max_tokens=8))
    assert results[1] == results[0]


def test_sampling_parameters_and_logprobs_are_those_of_one_rank():
    config, weights = tiny("Llama")  # a vocabulary of 131 is not divisible: the last rank's part is filled up
    results = []
    for num_ranks in (1, 2):
        with LocalEngine(config, weights, num_ranks=num_ranks) as local:
            results.append(local.generate_all(prompts(7, 19, 33, 8, 21), GREEDY_AND_MORE, max_tokens=10))
    assert without_rounding(results[1]) == without_rounding(results[0])


def test_prefix_cache_preemption_and_chunks():
    config, weights = tiny("Qwen2")
    shared = prompts(64)[0]
    asked = [shared + one for one in prompts(3, 9, 30, 30, 12, 17)]
    results = []
    for num_ranks in (1, 2):
        cache = BlockHashCache()
        with LocalEngine(
            config,
            weights,
            num_ranks=num_ranks,
            prefix_cache=cache,
            num_blocks=22,
            tokens=40,
            max_num_seqs=6,
            max_model_len=300,
        ) as local:
            first = local.generate(asked, max_tokens=40)
            results.append((first, local.generate(asked, max_tokens=5)))
            assert local.engine.stats.num_preemptions
    assert results[1] == results[0]


def test_lora_adapters_are_cut_as_the_model_is(tmp_path):
    config, weights = tiny("Llama", num_key_value_heads=1)
    for number in (1, 2):
        write_adapter(tmp_path / str(number), adapter_tensors(weights, seed=number))
    results = []
    for num_ranks in (1, 2):
        with LocalEngine(config, weights, num_ranks=num_ranks, max_loras=2) as local:
            for number in (1, 2):
                local.load_adapter(number, tmp_path / str(number))
            done = local.generate_all(prompts(9, 20, 31), adapters=[0, 1, 2], max_tokens=8)
            results.append([entry["tokens"] for entry in done])
            for number in (1, 2):
                local.engine.adapters.retire(number)
    assert results[1] == results[0]
    assert len({tuple(tokens) for tokens in results[0]}) == 3


def test_ngram_drafts_are_verified_by_all_ranks():
    from plugserve.plugins.speculative.ngram import NgramProposer

    config, weights = tiny("Llama")
    text = prompts(12)[0] * 4
    results = []
    for num_ranks in (1, 2):
        with LocalEngine(
            config, weights, num_ranks=num_ranks, draft_policy=DraftPolicy(3, is_adaptive=False),
            proposer=lambda **facts: NgramProposer(3, 1),
        ) as local:  # fmt: skip
            results.append(local.generate([text, text[:30]], max_tokens=20))
            assert local.engine.stats.num_drafts
    assert results[1] == results[0]


def test_a_number_of_ranks_that_does_not_divide_the_model_is_refused():
    config, weights = tiny("Llama")
    with pytest.raises(ConfigError, match=r"parallel-size 3 does not divide .* 4 attention heads.*use 1 or 2 or 4"):
        LocalEngine(config, weights, num_ranks=3)
