"""Blocks go to host memory and come back unchanged, whatever the layout and the order."""

from __future__ import annotations

import pytest
import torch

from plugserve.backends.torch.runner import host_copies, memory_plan
from plugserve.backends.torch.runner.devices import CpuKind, CudaKind
from plugserve.backends.torch.runner.host_copies import HostCopies, PinnedHostCopies
from plugserve.backends.torch.runner.memory_plan import GIB, MemoryRequest, plan_host_slots

NUM_BLOCKS = 12
LAYOUTS = {0: (NUM_BLOCKS, 2, 4, 3), 1: (2, NUM_BLOCKS, 4, 3), 3: (2, 4, 3, NUM_BLOCKS)}


def kv_of(block_axis, dtype=torch.float32):
    return [torch.randn(LAYOUTS[block_axis]).to(dtype) for _ in range(3)]


def block_of(kv, block_axis, block):
    return [layer.movedim(block_axis, 0)[block].clone() for layer in kv]


def assert_equal(one, other):
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(params=["one chunk", "small chunks"])
def chunks(request, monkeypatch):
    if request.param == "small chunks":
        monkeypatch.setattr(host_copies, "_CHUNK_BYTES", 700)  # two slots of 288 bytes


class UnpinnedCopies(PinnedHostCopies):
    """A GPU's copies, on a machine without one."""

    _empty_chunk = HostCopies._empty_chunk


@pytest.fixture(params=[HostCopies, UnpinnedCopies])
def make(request):
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block_axis", LAYOUTS)
def test_blocks_come_back_as_they_went(block_axis, dtype, chunks, make):
    kv = kv_of(block_axis, dtype)
    before = [block_of(kv, block_axis, block) for block in range(NUM_BLOCKS)]
    copies = make(kv, block_axis)
    slots = [5, 0, 9, 4]
    copies.run(list(zip(range(4), slots, strict=True)), [])
    for layer in kv:
        layer.movedim(block_axis, 0)[:8].zero_()
    copies.run([], list(zip(slots, [6, 4, 7, 5], strict=True)))
    for block, origin in ((6, 0), (4, 1), (7, 2), (5, 3)):
        assert_equal(block_of(kv, block_axis, block), before[origin])
    for block in range(8, NUM_BLOCKS):
        assert_equal(block_of(kv, block_axis, block), before[block])


def test_copies_out_come_before_copies_in(chunks, make):
    kv = kv_of(1)
    before = [block_of(kv, 1, block) for block in range(2)]
    copies = make(kv, 1)
    copies.run([(0, 0)], [])
    copies.run([(1, 7)], [(0, 1), (7, 2)])  # block 1 is saved before slot 0 is written over it
    assert_equal(block_of(kv, 1, 1), before[0])
    assert_equal(block_of(kv, 1, 2), before[1])


def test_later_copy_into_one_slot_wins(chunks, make):
    kv = kv_of(1)
    before = [block_of(kv, 1, block) for block in range(NUM_BLOCKS)]
    copies = make(kv, 1)
    copies.run([(3, 2), (4, 9), (5, 2)], [(2, 0), (9, 1)])
    assert_equal(block_of(kv, 1, 0), before[5])
    assert_equal(block_of(kv, 1, 1), before[4])


def test_neighbouring_slots_travel_together(monkeypatch):
    monkeypatch.setattr(host_copies, "_MOST_STAGED", 4)
    kv = [torch.arange(20.0).view(20, 1)]
    copies, sizes = UnpinnedCopies(kv, 0), []
    copy = torch.Tensor.copy_

    def spy(self, source, non_blocking=False):
        sizes.append(len(source))
        return copy(self, source, non_blocking=non_blocking)

    monkeypatch.setattr(torch.Tensor, "copy_", spy)
    slots = [9, 3, 2, 1, 6, 5, 4]
    copies.run([(block, slot) for block, slot in enumerate(slots)], [])
    assert sizes == [4, 2, 1]
    kv[0][:] = -1
    copies.run([], [(slot, 10 + block) for block, slot in enumerate(slots)])
    assert kv[0][10:17].flatten().tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_memory_is_taken_when_a_slot_is_used(monkeypatch):
    monkeypatch.setattr(host_copies, "_CHUNK_BYTES", 700)
    copies = HostCopies(kv_of(1), 1)
    assert not copies._chunks
    copies.run([(0, 1000)], [])
    assert [chunk.shape[0] for chunk in copies._chunks.values()] == [2]


@pytest.mark.parametrize(
    ("asked", "available", "kind", "slots"),
    [
        (0, 10 * GIB, CpuKind(), 0),
        (2 * GIB, 10 * GIB, CpuKind(), 2048),
        (None, 10 * GIB, CpuKind(), 0),
        (None, 10 * GIB, CudaKind(torch.device("cuda")), 4096),
        (None, 4 * GIB, CudaKind(torch.device("cuda")), 2048),
        (20 * GIB, 10 * GIB, CpuKind(), 5120),
    ],
)
def test_slots_fit_the_memory_that_is_left(monkeypatch, caplog, asked, available, kind, slots):
    monkeypatch.setattr(memory_plan, "available_memory_bytes", lambda: available)
    request = MemoryRequest(None, None, 0.9, asked)
    assert plan_host_slots(request, 1 << 20, kind.default_host_bytes) == slots
    assert ("--swap-space lowered from=20 to=5.0 GiB" in caplog.text) == (asked == 20 * GIB)
