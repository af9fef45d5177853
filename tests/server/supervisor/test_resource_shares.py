"""What models of one server divide: cores on a CPU, memory on a GPU; and what their engines take."""

import os

import pytest

from plugserve.core.contracts.engine_facts import EngineInfo
from plugserve.core.contracts.memory import HOST, MemoryItem, MemoryLedger, MemoryPlace
from plugserve.core.errors import ConfigError
from plugserve.core.settings.model_entries import ModelEntry
from plugserve.core.settings.settings import Settings
from plugserve.server.supervisor import model_size, resource_shares
from plugserve.server.supervisor.model_finder import FoundModel
from plugserve.server.supervisor.model_size import measure_bytes, private_bytes
from plugserve.server.supervisor.resource_shares import ResourceShares

GIB = 1 << 30


def entries(num_kept, num_on_demand, **overrides):
    kept = [ModelEntry(f"k{n}", "x", (f"k{n}",), is_pinned=True, overrides=overrides) for n in range(num_kept)]
    return kept + [ModelEntry(f"d{n}", "x", (f"d{n}",), overrides=overrides) for n in range(num_on_demand)]


@pytest.mark.parametrize(
    ("num_kept", "num_on_demand", "of_kept", "of_others"),
    [(1, 0, None, None), (2, 0, 4, None), (0, 5, None, None), (1, 5, None, 4), (3, 1, 2, 2), (16, 1, 1, 1)],
)
def test_engines_divide_the_cores(monkeypatch, num_kept, num_on_demand, of_kept, of_others):
    monkeypatch.setattr(resource_shares, "usable_cores", lambda: 8)
    table = entries(num_kept, num_on_demand)
    shares = ResourceShares(Settings(), table)
    for entry in table:
        expected = of_kept if entry.is_pinned else of_others
        assert shares.divided(Settings(device="cpu"), entry).threads == expected
        assert shares.divided(Settings(device="cpu", threads=7), entry).threads == 7


def test_engines_on_a_gpu_divide_its_memory():
    table = entries(2, 0)
    shares = ResourceShares(Settings(), table)
    found = FoundModel(None, size_bytes=70 * GIB, kv_bytes=60 * GIB, device_bytes=80 * GIB)
    own = shares.with_kv(Settings(device="cuda"), table[0], found)
    assert own.kv_cache_memory == int(80 * GIB * 0.9 / 2) - 10 * GIB
    assert found.size_with(own.kv_cache_memory) == int(80 * GIB * 0.9 / 2), "two of them fit side by side"
    given = Settings(device="cuda", kv_cache_memory=GIB)
    assert shares.with_kv(given, table[0], found) is given
    alone = ResourceShares(Settings(), table[:1])
    assert alone.with_kv(Settings(device="cuda"), table[0], found).kv_cache_memory is None
    own_share = entries(1, 1, gpu_memory_utilization=0.3)
    assert not ResourceShares(Settings(), own_share).divides_gpu(Settings(device="cuda"), own_share[0])


def test_a_model_larger_than_its_share_is_refused_with_the_way_out():
    table = entries(0, 9)
    found = FoundModel(None, size_bytes=50 * GIB, kv_bytes=GIB, device_bytes=80 * GIB)
    with pytest.raises(ConfigError, match=r"49\.00 GiB without a KV cache, more than its share of the GPU, 36\.00 GiB"):
        ResourceShares(Settings(), table).with_kv(Settings(device="cuda"), table[0], found)


def info(device, needed, kv=0, weights=0):
    place = MemoryPlace(
        name=HOST if device == "cpu" else device, title="", total_bytes=0, other_bytes=0, budget_bytes=0,
        items=(MemoryItem("all", needed),),
    )  # fmt: skip
    ledger = MemoryLedger(
        device=device, dtype="float32", places=(place,), kv_bytes_per_token=1, num_kv_tokens=1, max_model_len=1,
        asked_model_len=None, max_num_seqs=1, max_num_batched_tokens=1,
    )  # fmt: skip
    return EngineInfo(
        vocab_size=8, max_model_len=64, max_num_batched_tokens=64, num_blocks=4, block_size=16, kv_cache_bytes=kv,
        weight_bytes=weights, dtype="float32", device=device, load_seconds=0.1, memory=ledger,
    )  # fmt: skip


def test_the_size_of_an_engine_is_its_peak_or_what_it_takes_already(monkeypatch):
    monkeypatch.setattr(model_size, "private_bytes", lambda pid: 300)
    assert measure_bytes(1, info("cpu", needed=1000, kv=100)) == 1000
    assert measure_bytes(1, info("cpu", needed=350, kv=100)) == 400
    assert measure_bytes(1, info("cuda:0", needed=5 * GIB, kv=GIB, weights=GIB)) == 5 * GIB


def test_private_memory_of_a_process_is_read():
    assert private_bytes(os.getpid()) > 2**20
    assert private_bytes(2**22 + 1) == 0
