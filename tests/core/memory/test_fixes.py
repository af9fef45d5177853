"""The change that is named makes the model fit, and there is no smaller one of its kind."""

from __future__ import annotations

import pytest

from plugserve.core.contracts.memory import HOST, MemoryItem, MemoryLedger, MemoryPlace
from plugserve.core.memory.fixes import find_fixes
from plugserve.core.memory.ledger_text import problem, summary, table
from plugserve.core.settings.settings import Settings

MIB, GIB = 1 << 20, 1 << 30
TOKEN_BYTES = 64 << 10


def estimator(settings, budget_bytes, *, weights=2 * GIB, device="cpu", fixed=0):
    """A model of weights bytes in float32, with 64 KiB of KV a token, 1 MiB a row and 1 MiB a token of a step."""

    def estimate(changes):
        asked = {**{name: getattr(settings, name) for name in Settings.model_fields}, **changes}
        is_narrow = asked["dtype"] == "bfloat16"
        num_tokens = asked["max_num_batched_tokens"] or 256
        length = asked["max_model_len"] or 1024
        kv = asked["kv_cache_memory"] or length * TOKEN_BYTES
        offloaded = int(asked["cpu_offload_gb"] * GIB)
        items = (
            MemoryItem("weights", (weights // 2 if is_narrow else weights) - offloaded),
            MemoryItem("KV cache", kv),
            MemoryItem("rows", asked["max_num_seqs"] * MIB),
            MemoryItem("steps", num_tokens * MIB + fixed),
        )
        share = asked["gpu_memory_utilization"] if device != "cpu" else 1
        place = MemoryPlace(
            name=HOST if device == "cpu" else device,
            title="a place",
            total_bytes=budget_bytes,
            other_bytes=0,
            budget_bytes=int(budget_bytes * share),
            items=items,
        )
        host = MemoryPlace(
            name=HOST, title="host", total_bytes=8 * GIB, other_bytes=0, budget_bytes=8 * GIB,
            items=(MemoryItem("offloaded", offloaded),),
        )  # fmt: skip
        return MemoryLedger(
            device=device,
            dtype="bfloat16" if is_narrow else "float32",
            places=(place,) if device == "cpu" else (place, host),
            kv_bytes_per_token=TOKEN_BYTES,
            num_kv_tokens=kv // TOKEN_BYTES,
            max_model_len=length,
            asked_model_len=asked["max_model_len"],
            max_num_seqs=asked["max_num_seqs"],
            max_num_batched_tokens=num_tokens,
        )

    return estimate


def fixes(settings, budget_bytes, **model):
    estimate = estimator(settings, budget_bytes, **model)
    assert not estimate({}).fits
    assert problem(estimate({}))
    found = find_fixes(settings, estimate)
    assert all(estimate(fix.changes).fits for fix in found), "a fix that is named works"
    return [str(fix) for fix in found]


def test_cache_that_is_too_small_for_the_length_is_enlarged_first():
    settings = Settings(max_model_len=16384, kv_cache_memory=256 * MIB)
    assert fixes(settings, 8 * GIB)[:2] == ["--kv-cache-memory 1GiB", "--max-model-len 4096"]


def test_cache_that_is_too_large_is_made_as_small_as_needed():
    found = fixes(Settings(kv_cache_memory=16 * GIB, max_num_seqs=1), 8 * GIB)
    size = int(found[0].removeprefix("--kv-cache-memory ").removesuffix("MiB"))
    assert 8 * 1024 - 2048 - 256 - 1 - 512 < size < 8 * 1024 - 2048 - 256 - 1


def test_fewer_rows_come_before_a_shorter_length():
    found = fixes(Settings(max_model_len=16384), 3 * GIB + 400 * MIB)
    assert found[:2] == ["--max-num-batched-tokens 64", "--max-num-seqs 64"]
    assert any(fix.startswith("--max-model-len") for fix in found)


def test_length_is_the_longest_round_one():
    settings = Settings(max_model_len=65536, max_num_seqs=1, max_num_batched_tokens=64)
    found = fixes(settings, 4 * GIB)
    length = int(found[0].removeprefix("--max-model-len "))
    assert length % 1024 == 0
    room = 4 * GIB - 2 * GIB - 65 * MIB - 4 * GIB // 64
    assert (length + 1024) * TOKEN_BYTES > room >= length * TOKEN_BYTES


def test_narrower_weights_when_nothing_else_helps():
    assert fixes(Settings(), 2 * GIB + 64 * MIB)[0] == "--dtype bfloat16"


def test_two_changes_when_one_is_not_enough():
    found = fixes(Settings(), 1 * GIB + 464 * MIB)
    assert found[0] == "--dtype bfloat16 --max-num-batched-tokens 64"


def test_nothing_helps_a_model_that_is_too_large():
    assert fixes(Settings(), 512 * MIB) == []


def test_a_gpu_gives_more_of_itself_first_then_offloads():
    settings = Settings(max_num_seqs=1, max_num_batched_tokens=64)
    found = fixes(settings, 4 * GIB, weights=3 * GIB + 636 * MIB, device="cuda")
    assert found[0] == "--gpu-memory-utilization 0.94"
    assert "--cpu-offload-gb 0.5" in found
    found = fixes(settings, 4 * GIB, weights=6 * GIB, device="cuda")
    assert found[-1] == "--cpu-offload-gb 3"


def test_blocks_that_the_user_counted_are_counted_again():
    settings = Settings(max_model_len=16384, num_gpu_blocks_override=10, kv_cache_memory=10 * 16 * TOKEN_BYTES)
    estimate = estimator(settings, 8 * GIB)
    override = [fix for fix in find_fixes(settings, estimate) if "num_gpu_blocks_override" in fix.changes]
    assert not override, "this estimator doesn't follow it, so it is not named"


def test_texts_name_every_item_and_what_is_missing():
    ledger = estimator(Settings(), GIB)({})
    text = table(ledger)
    for word in ("weights", "KV cache", "rows", "steps", "1.56 GiB missing", "requests of full length"):
        assert word in text
    assert summary(ledger).startswith("weights 2.00 GiB + KV cache ")
    assert "1.56 GiB are missing" in problem(ledger)


@pytest.mark.parametrize("budget", [8 * GIB, 64 * GIB])
def test_what_fits_has_no_problem(budget):
    assert problem(estimator(Settings(), budget)({})) == ""
