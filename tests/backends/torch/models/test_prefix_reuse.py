"""On = off, token for token: prefix cache x chunked prefill x preemption x host tier, on a tiny random model in float32
and through the real runner. Every token attends to all before it, so a wrong block shows."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from tests.backends.torch.models.test_llama import TINY
from tests.core.harness import LocalEngine, randomise

MAX_TOKENS = 20


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = randomise(LlamaForCausalLM(LlamaConfig(**TINY)).float())
    return model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}, model.state_dict()


@pytest.fixture(scope="module")
def prompts():
    """Conversations over three stems; some prompts are equal, some end where a block does."""
    rng = random.Random(2)
    stems = [[rng.randrange(199) for _ in range(length)] for length in (96, 70, 33)]
    tails = [[rng.randrange(199) for _ in range(rng.choice([1, 5, 16, 26]))] for _ in range(9)]
    pairs = [(rng.choice(stems), rng.choice(tails)) for _ in range(14)]
    return [stem[: rng.choice([32, 64, 96])] + tail for stem, tail in pairs]


@pytest.fixture(scope="module")
def expected(model, prompts):
    with LocalEngine(*model, tokens=2048, num_blocks=600) as engine:
        return [engine.generate([prompt], max_tokens=MAX_TOKENS)[0] for prompt in prompts]


@pytest.mark.parametrize(
    ("num_blocks", "host_bytes"),
    [(14, 0), (14, 40_000), (14, 4_000_000), (600, 0), (600, 4_000_000)],
    ids=["preemption-no tier", "preemption-small tier", "preemption-large tier", "room-no tier", "room-unused tier"],
)
@pytest.mark.parametrize("tokens", [9, 2048])
@pytest.mark.parametrize("caches", [True, False], ids=["on", "off"])
def test_tokens_are_equal(model, prompts, expected, caches, tokens, num_blocks, host_bytes):
    cache = BlockHashCache() if caches else None
    options = {"tokens": tokens, "num_blocks": num_blocks, "max_num_seqs": 6, "max_model_len": 200}
    with LocalEngine(*model, prefix_cache=cache, host_bytes=host_bytes, **options) as local:
        for _ in range(2):
            assert local.generate(prompts, max_tokens=MAX_TOKENS) == expected
        stats = local.engine.snapshot()
        assert (stats.num_preemptions > 0) == (num_blocks == 14)
        assert (stats.num_prefix_hit_tokens > 0) == caches
        is_tier_used = bool(host_bytes and num_blocks == 14)
        assert (stats.num_host_bytes_in > 0) == is_tier_used
        assert (stats.num_prefix_hit_tokens_host > 0) == (is_tier_used and caches)
        if host_bytes > 1_000_000:
            assert stats.num_swap_preemptions == stats.num_preemptions


def test_evicted_and_restored_prefix_gives_equal_logprobs(model):
    """The keys and values that come back are the very same bits."""
    rng = random.Random(5)
    prompt, others = (
        [rng.randrange(199) for _ in range(90)],
        [[rng.randrange(199) for _ in range(90)] for _ in range(4)],
    )
    options = {"tokens": 2048, "num_blocks": 8, "max_model_len": 128, "host_bytes": 1 << 20}
    with LocalEngine(*model, prefix_cache=BlockHashCache(), **options) as local:
        local.generate([prompt], max_tokens=1)
        (device,) = local.generate_all([prompt], num_logprobs=5)
        assert local.engine.snapshot().num_prefix_hit_tokens_host == 0
        for other in others:
            local.generate([other], max_tokens=1)
        (host,) = local.generate_all([prompt], num_logprobs=5)
        assert local.engine.snapshot().num_prefix_hit_tokens_host == 80
    assert host["tokens"] == device["tokens"]
    assert host["logprobs"] == device["logprobs"]


def test_prompt_logprobs_are_equal_beside_a_filled_cache(model, prompts):
    with LocalEngine(*model, prefix_cache=BlockHashCache()) as local:
        alone = local.generate_all(prompts[:4], num_prompt_logprobs=2)
        local.generate(prompts)
        again = local.generate_all(prompts[:4], num_prompt_logprobs=2)
    for before, after in zip(alone, again, strict=True):
        assert len(before["prompt_logprobs"]) == len(after["prompt_logprobs"])
        for one, other in zip(before["prompt_logprobs"][1:], after["prompt_logprobs"][1:], strict=True):
            assert one.token_id == other.token_id
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
