"""LoRA on a GPU: the grouped kernels at full size, and the whole engine against merged weights."""

import pytest
import torch

from plugserve.plugins.lora import lora_kernels as kernels
from plugserve.plugins.lora.batched import BatchedLora
from plugserve.plugins.lora.gathered import GatheredLora
from tests.core.harness import LocalEngine
from tests.gpu.test_engine import LLAMA, PROMPTS, model_of
from tests.lora_reference import expand_reference, shrink_reference
from tests.lora_samples import adapter_tensors, merged, write_adapter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("counts", "block_m"), [([1] * 64, 16), ([700, 1, 33, 0, 64], 64)])
@pytest.mark.parametrize(("sizes", "num_inputs"), [([4096, 1024, 1024], 4096), ([14336, 14336], 4096), ([4096], 14336)])
@pytest.mark.parametrize("rank", [16, 64])
def test_kernels_equal_the_plain_forms_at_full_size(dtype, counts, block_m, sizes, num_inputs, rank):
    generator = torch.Generator().manual_seed(0)
    num_slots, num_tokens = len(counts), sum(counts) + 5
    x = torch.randn(num_tokens, num_inputs, generator=generator).to(dtype)
    a = (torch.randn(8, len(sizes), rank, num_inputs, generator=generator) * num_inputs**-0.5).to(dtype)
    b = (torch.randn(8, sum(sizes), rank, generator=generator) * rank**-0.5).to(dtype)
    y = torch.randn(num_tokens, sum(sizes), generator=generator).to(dtype)
    order = torch.randperm(num_tokens, generator=generator)[: sum(counts)].int()
    tiles, start = [], 0
    for slot in range(num_slots):
        for first in range(0, counts[slot], block_m):
            count = min(block_m, counts[slot] - first)
            tiles.append((slot % 8, start + first, count))
        start += counts[slot]
    tiles = torch.tensor(tiles, dtype=torch.int32)
    shrunk = shrink_reference(x, a, order, tiles)
    expected = expand_reference(shrunk, b, y, order, tiles, sizes)
    gpu = torch.device("cuda")
    order, tiles, out = order.to(gpu), tiles.to(gpu), y.to(gpu)
    parts = kernels.shrink(x.to(gpu), a.to(gpu), order, tiles, block_m)
    kernels.expand(parts, b.to(gpu), out, order, tiles, kernels.output_blocks(sizes, gpu), block_m)
    tolerance = {torch.float32: 3e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    torch.testing.assert_close(out.cpu().double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("make_lora", [BatchedLora, GatheredLora])
def test_adapters_in_one_batch_equal_merged_weights_and_change_no_other_row(tmp_path, make_lora):
    weights = {name: tensor.detach() for name, tensor in model_of(LLAMA).state_dict().items()}
    ids = [0, 1, 2, 0, 3, 1, 0]
    own = {0: weights}
    for id, rank in ((1, 8), (2, 16), (3, 4)):
        tensors = adapter_tensors(weights, rank=rank, seed=id)
        write_adapter(tmp_path / str(id), tensors, r=rank)
        own[id] = merged(weights, tensors)
    expected = []
    for id, prompt in zip(ids, PROMPTS, strict=True):
        with LocalEngine(LLAMA, own[id], device="cuda", max_model_len=256) as local:
            expected.append(local.generate([prompt], max_tokens=16)[0])
    with LocalEngine(LLAMA, weights, device="cuda", max_model_len=256, max_loras=2, make_lora=make_lora) as local:
        for id in (1, 2, 3):
            local.load_adapter(id, tmp_path / str(id))
        done = local.generate_all(PROMPTS, adapters=ids, max_tokens=16)
        assert [entry["tokens"] for entry in done] == expected
        held = torch.cuda.memory_allocated()
        for id in range(10, 110):  # loads and unloads hold no more memory afterwards
            local.load_adapter(id, tmp_path / str(id % 3 + 1))
            local.generate_all(PROMPTS[:2], adapters=[id, 0], max_tokens=2)
            local.engine.adapters.retire(id)
        while local.engine.has_work:
            local.engine.step()
        assert torch.cuda.memory_allocated() <= held + 2**20
