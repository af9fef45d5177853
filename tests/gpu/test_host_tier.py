"""Copies between a GPU's KV blocks and page-locked host memory: equal bits, and equal tokens in the engine."""

from __future__ import annotations

import random

import pytest
import torch

from plugserve.backends.torch.runner import host_copies
from plugserve.backends.torch.runner.host_copies import PinnedHostCopies
from plugserve.plugins.prefix_cache.lru_cache import BlockHashCache
from tests.core.harness import LocalEngine
from tests.gpu.test_engine import LLAMA, model_of


@pytest.mark.parametrize("chunk_bytes", [1 << 16, 64 << 20])
def test_blocks_are_restored_bit_for_bit_while_the_device_is_busy(monkeypatch, chunk_bytes):
    monkeypatch.setattr(host_copies, "_CHUNK_BYTES", chunk_bytes)
    kv = [torch.randn((2, 300, 16, 2, 64), device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    before = [layer.clone() for layer in kv]
    copies, work = PinnedHostCopies(kv, 1), torch.randn((4096, 4096), device="cuda")
    order = random.Random(0).sample(range(300), 200)
    for _ in range(10):
        work = (work @ work).clamp(-1, 1)  # what is queued before must not be waited for, nor overtaken
    copies.run([(block, slot) for slot, block in enumerate(order)], [])
    for layer in kv:
        layer.zero_()  # the step that reuses the blocks
    copies.run([], list(enumerate(order)))
    for layer, original in zip(kv, before, strict=True):
        assert torch.equal(layer[:, order], original[:, order])
        rest = sorted(set(range(300)) - set(order))
        assert not layer[:, rest].any()


@pytest.mark.parametrize("enforce_eager", [False, True])
@pytest.mark.parametrize("has_cache", [False, True])
@pytest.mark.parametrize("host_bytes", [0, 2_000_000, 1 << 28])
def test_prefix_cache_preemption_and_host_memory_change_no_token(enforce_eager, has_cache, host_bytes):
    rng = random.Random(3)
    stems = [[rng.randrange(600) for _ in range(96)] for _ in range(3)]
    prompts = [
        rng.choice(stems)[: rng.choice([40, 64, 96])] + [rng.randrange(600) for _ in range(9)] for _ in range(24)
    ]
    model = model_of(LLAMA)
    options = {"device": "cuda", "enforce_eager": enforce_eager, "max_model_len": 200, "tokens": 64}
    with LocalEngine(LLAMA, model.state_dict(), num_blocks=600, **options) as plain:
        expected = [plain.generate([prompt], max_tokens=24)[0] for prompt in prompts]
    cache = BlockHashCache() if has_cache else None
    with LocalEngine(
        LLAMA, model.state_dict(), num_blocks=16, max_num_seqs=6, prefix_cache=cache, host_bytes=host_bytes, **options
    ) as tight:
        for _ in range(2):
            assert tight.generate(prompts, max_tokens=24) == expected
        stats = tight.engine.snapshot()
        assert stats.num_preemptions > 0
        assert (stats.num_swap_preemptions > 0) == (host_bytes > 0)
        assert (stats.num_prefix_hit_tokens_host > 0) == (has_cache and host_bytes > 0)
        if host_bytes == 1 << 28:
            assert stats.num_swap_preemptions == stats.num_preemptions
