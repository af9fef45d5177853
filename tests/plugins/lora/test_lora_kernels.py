"""The grouped kernels against their plain forms, small enough for Triton's interpreter; tests/gpu has more."""

from __future__ import annotations

import pytest
import torch

from plugserve.core.contracts.lora import LoraSite, LoraSlice, LoraSpec
from plugserve.plugins.lora import lora_kernels as kernels
from plugserve.plugins.lora.batched import BatchedLora
from plugserve.plugins.lora.gathered import GatheredLora
from tests.lora_reference import expand_reference, shrink_reference
from tests.lora_samples import write_adapter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 2e-6, torch.float16: 4e-3}


def tensors_of(sizes, num_inputs, dtype, num_slots=3, rank=16, num_tokens=9):
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    a = rand(num_slots, len(sizes), rank, num_inputs) * num_inputs**-0.5
    return rand(num_tokens, num_inputs), a, rand(num_slots, sum(sizes), rank) * 0.2, rand(num_tokens, sum(sizes))


# tokens 3 and 7 have no adapter; slot 2 has two tiles
ORDER = torch.tensor([5, 0, 8, 1, 2, 4, 6], dtype=torch.int32)
TILES = torch.tensor([[1, 0, 2], [0, 2, 1], [2, 3, 3], [2, 6, 1]], dtype=torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("sizes", "num_inputs"), [([48, 16, 16], 40), ([70, 70], 600), ([24], 64)])
def test_shrink_and_expand_equal_the_plain_forms(sizes, num_inputs, dtype):
    x, a, b, y = tensors_of(sizes, num_inputs, dtype)
    shrunk = shrink_reference(x, a, ORDER, TILES)
    expected = expand_reference(shrunk, b, y, ORDER, TILES, sizes)
    order, tiles = ORDER.to(DEVICE), TILES.to(DEVICE)
    parts = kernels.shrink(x.to(DEVICE), a.to(DEVICE), order, tiles, 16)
    assert len(parts) == (2 if num_inputs == 600 else 1)
    torch.testing.assert_close(parts.sum(0).cpu().double(), shrunk, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    out = y.to(DEVICE)
    kernels.expand(parts, b.to(DEVICE), out, order, tiles, kernels.output_blocks(sizes, torch.device(DEVICE)), 16)
    tolerance = 2 * TOLERANCE[dtype]
    torch.testing.assert_close(out.cpu().double(), expected, atol=tolerance, rtol=tolerance)
    assert torch.equal(out[[3, 7]].cpu(), y[[3, 7]])


def spec_of(max_loras=3, max_rank=8):
    slices = (
        LoraSlice("self_attn.q_proj", 0, 32),
        LoraSlice("self_attn.k_proj", 32, 16),
        LoraSlice("self_attn.v_proj", 48, 16),
    )
    sites = (
        LoraSite("qkv", 24, slices, "self_attn.qkv_proj"),
        LoraSite("o", 32, (LoraSlice("self_attn.o_proj", 0, 24),)),
    )
    return LoraSpec(2, sites, "float32", DEVICE, max_loras, max_rank)


def folders(tmp_path, spec):
    """Three adapters: all modules, one module at another rank, fused q, k and v."""
    generator = torch.Generator().manual_seed(1)

    def pair(module, size, inputs, rank):
        return {
            f"base_model.model.model.layers.{layer}.{module}.lora_{side}.weight": torch.randn(
                *shape, generator=generator
            )
            for layer in range(2)
            for side, shape in (("A", (rank, inputs)), ("B", (size, rank)))
        }

    every = {}
    for site in spec.sites:
        for part in site.slices:
            every |= pair(part.module, part.size, site.input_size, 8)
    made = [
        (every, {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}),
        (pair("self_attn.k_proj", 16, 24, 3), {"target_modules": ["k_proj"], "r": 3}),
        (pair("self_attn.qkv_proj", 64, 24, 5), {"target_modules": ["qkv_proj"], "r": 5}),
    ]
    return [write_adapter(tmp_path / str(n), tensors, **config) for n, (tensors, config) in enumerate(made)]


@pytest.mark.parametrize("num_tokens", [[1, 1, 1, 1, 1], [3, 1, 18, 2, 1]])
def test_managers_agree_and_loading_replaces_a_slots_adapter(tmp_path, num_tokens):
    spec = spec_of()
    made = folders(tmp_path, spec)
    managers = BatchedLora(spec), GatheredLora(spec)
    size_bytes = managers[0].size_bytes
    for assignment in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        results = []
        for manager in managers:
            for slot, n in enumerate(assignment):
                manager.load(slot, manager.read(made[n]))
            step = manager.plan([2, -1, 0, 1, 2], num_tokens)
            generator = torch.Generator().manual_seed(2)
            returned = []
            for site in spec.sites:
                x = torch.randn(sum(num_tokens), site.input_size, generator=generator).to(DEVICE)
                y = torch.randn(sum(num_tokens), site.output_size, generator=generator).to(DEVICE)
                before = y.clone()
                manager.apply(site.name, 1, x, y, step)
                without = slice(num_tokens[0], num_tokens[0] + num_tokens[1])
                assert torch.equal(y[without], before[without])
                assert not torch.equal(y, before)
                returned.append(y)
            results.append(returned)
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)
    assert managers[0].size_bytes == size_bytes


def test_unloaded_slots_are_empty(tmp_path):
    spec = spec_of()
    made = folders(tmp_path, spec)
    for manager in (BatchedLora(spec), GatheredLora(spec)):
        empty = manager.size_bytes
        for _ in range(20):
            for slot in range(3):
                manager.load(slot, manager.read(made[slot]))
                manager.unload(slot)
        assert manager.size_bytes == empty
    batched = BatchedLora(spec)
    batched.load(0, batched.read(made[0]))
    batched.unload(0)
    assert not any(bool(tensor.any()) for site in batched._buffers.values() for tensor in (site.a, site.b))
