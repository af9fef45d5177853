"""GET /v1/memory: the prediction beside what is used; and the metrics of it."""

from __future__ import annotations

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.contracts.memory import HOST, MemoryItem, MemoryLedger, MemoryPlace, MemoryUse
from tests.server.operations.test_metrics import MODEL, scrape

LEDGER = MemoryLedger(
    device="cpu", dtype="float32", kv_bytes_per_token=10, num_kv_tokens=128, max_model_len=64, asked_model_len=None,
    max_num_seqs=4, max_num_batched_tokens=8,
    places=(
        MemoryPlace(
            name=HOST, title="host", total_bytes=1000, other_bytes=100, budget_bytes=900,
            items=(MemoryItem("weights", 500, "as float32"), MemoryItem("KV cache", 300)), loading_bytes=850,
        ),
    ),
)  # fmt: skip


async def ask(server):
    answer = await server.client.get("/v1/memory")
    assert answer.status_code == 200
    (entry,) = answer.json()["data"]
    return entry


async def test_prediction_and_use(server):
    server.engine.memory = LEDGER
    server.engine.snapshot = EngineStats(
        num_blocks=8, num_free_blocks=6, memory=MemoryUse(resident_bytes=700, peak_resident_bytes=800)
    )
    entry = await ask(server)
    assert (entry["id"], entry["state"]) == ("fake/model", "up")
    (place,) = entry["predicted"]["places"]
    assert place["items"][0] == {"name": "weights", "size_bytes": 500, "detail": "as float32"}
    assert (place["needed_bytes"], place["peak_bytes"], place["missing_bytes"]) == (800, 850, 0)
    assert entry["predicted"]["fits"] is True
    assert entry["predicted"]["num_full_requests"] == 2
    actual = entry["actual"]
    assert (actual["resident_bytes"], actual["peak_resident_bytes"]) == (700, 800)
    assert actual["kv_used_bytes"] == actual["kv_cache_bytes"] * 2 // 8


async def test_runner_that_predicts_nothing(server):
    entry = await ask(server)
    assert entry["predicted"] is None
    assert entry["actual"]["max_model_len"] == 128


async def test_no_figures_without_an_engine(server):
    server.engine.state = "dead"
    entry = await ask(server)
    assert (entry["state"], entry["predicted"], entry["actual"]) == ("dead", None, None)


async def test_metrics_of_memory(server):
    use = MemoryUse(
        resident_bytes=1, peak_resident_bytes=2, device_reserved_bytes=3, device_peak_reserved_bytes=4
    )  # fmt: skip
    server.engine.snapshot = EngineStats(memory=use)
    values = await scrape(server)
    for name, value in (
        ("resident_memory", 1),
        ("resident_memory_peak", 2),
        ("device_memory_reserved", 3),
        ("device_memory_reserved_peak", 4),
    ):
        assert values[f"plugserve_engine_{name}_bytes", MODEL] == value
