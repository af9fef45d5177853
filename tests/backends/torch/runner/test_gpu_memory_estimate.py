"""The ledger of a GPU, with the driver's answers replaced: what the card holds, and what the host holds for it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from plugserve.backends.torch.runner.device_memory import CudaMemory
from plugserve.backends.torch.runner.memory_plan import MemoryRequest
from plugserve.core.contracts.memory import HOST
from plugserve.core.engine.memory_check import MemoryCheck
from plugserve.core.memory.machine import HostMemory
from plugserve.core.model_files.model_source import resolve
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings import Settings

pytest.importorskip("triton")
MIB, GIB = 1 << 20, 1 << 30
QWEN_7B = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rope_theta": 1000000.0, "rms_norm_eps": 1e-6,
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture
def card(monkeypatch):
    """A card of 80 GiB with a CUDA context of this process, and so much held by others; 64 GiB of host memory."""

    def make(other_bytes=0):
        facts = SimpleNamespace(multi_processor_count=132)
        cuda = {
            "is_available": lambda: True,
            "mem_get_info": lambda device=None: (80 * GIB - 480 * MIB - other_bytes, 80 * GIB),
            "get_device_name": lambda device=None: "a card",
            "get_device_capability": lambda device=None: (9, 0),
            "get_device_properties": lambda device=None: facts,
            "memory_allocated": lambda device=None: 1,
            "memory_reserved": lambda device=None: 2,
            "max_memory_reserved": lambda device=None: 3,
        }
        for name, function in cuda.items():
            monkeypatch.setattr(torch.cuda, name, function)
        host = HostMemory(64 * GIB, 60 * GIB, "machine")
        for module in ("device_memory", "memory_estimate"):
            monkeypatch.setattr(f"plugserve.backends.torch.runner.{module}.host_memory", lambda: host)
        monkeypatch.setattr("plugserve.backends.torch.runner.memory_plan.available_memory_bytes", lambda: 60 * GIB)

    make()
    return make


@pytest.fixture
def check_of(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN_7B))

    def make(**settings):
        chosen = Settings(load_format="dummy", device="cuda", **settings)
        host = PluginHost.load(chosen.selection())
        host.configure(chosen)
        return MemoryCheck(chosen, host, resolve(str(tmp_path), load_format="dummy"))

    return make


def sizes(ledger, place="cuda"):
    return {item.name: item.size_bytes for item in ledger.place(place).items}


def test_kv_is_the_rest_of_the_share(card, check_of):
    ledger = check_of().ledger()
    assert (ledger.device, ledger.dtype, ledger.fits) == ("cuda", "bfloat16", True)
    place, items = ledger.place("cuda"), sizes(ledger)
    assert place.title == "cuda, a card"
    assert place.budget_bytes == int(80 * GIB * 0.9)
    assert items["weights"] == 15231233024, "the parameters of Qwen2.5-7B, two bytes each"
    assert 0 <= place.budget_bytes - place.needed_bytes < 2 * 16 * ledger.kv_bytes_per_token
    assert ledger.kv_bytes_per_token == 2 * 28 * 4 * 128 * 2
    smaller = check_of(gpu_memory_utilization=0.5).ledger()
    assert sizes(ledger)["KV cache"] - sizes(smaller)["KV cache"] == pytest.approx(80 * GIB * 0.4, rel=1e-3)


def test_what_others_hold_is_not_the_models(card, check_of):
    card(other_bytes=20 * GIB)
    place = check_of().ledger().place("cuda")
    assert place.other_bytes == 20 * GIB
    assert place.budget_bytes == 80 * GIB - 20 * GIB - int(80 * GIB * 0.03)
    half = check_of(gpu_memory_utilization=0.45).ledger()
    assert half.place("cuda").budget_bytes == int(80 * GIB * 0.45), "a share beside another model's"
    card(other_bytes=36 * GIB)
    assert sizes(check_of(gpu_memory_utilization=0.45).ledger()) == sizes(half)


def test_graphs_keep_the_logits_of_every_size(card, check_of):
    graphs = sizes(check_of().ledger())["CUDA graphs"]
    rows = sum((1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), 256)) + 256
    assert graphs >= rows * 152064 * 2
    assert "CUDA graphs" not in sizes(check_of(enforce_eager=True).ledger())
    assert sizes(check_of(max_num_seqs=8).ledger())["CUDA graphs"] < graphs // 10


def test_prompts_have_logits_for_sampled_rows_alone(card, check_of):
    few, many = (sizes(check_of(max_num_batched_tokens=n).ledger()) for n in (2048, 8192))
    assert many["logits, sampling"] == few["logits, sampling"]
    assert many["activations"] == 4 * few["activations"] == 8192 * (3 * 18944 + 4 * 3584) * 2


def test_offloaded_weights_move_to_the_host(card, check_of):
    plain, offloaded = check_of().ledger(), check_of(cpu_offload_gb=4).ledger()
    moved = sizes(offloaded, HOST)["offloaded weights"]
    assert 4 * GIB <= moved < 4.5 * GIB
    assert sizes(plain)["weights"] - sizes(offloaded)["weights"] == pytest.approx(moved, rel=1e-3)
    gained = sizes(offloaded)["KV cache"] - sizes(plain)["KV cache"]
    assert gained == pytest.approx(moved - sizes(offloaded)["buffers for offloaded weights"], rel=1e-2)


def test_fixes_of_a_share_that_is_too_small(card, check_of):
    check = check_of(gpu_memory_utilization=0.2)
    assert not check.ledger().fits
    fixes = check.fixes()
    assert str(fixes[0]) == "--gpu-memory-utilization 0.22"
    assert any(str(fix).startswith("--cpu-offload-gb ") for fix in fixes)
    assert all(fix.ledger.fits for fix in fixes)


def test_fixes_of_a_card_that_is_nearly_full(card, check_of):
    card(other_bytes=61 * GIB)
    fixes = check_of().fixes()
    assert all(fix.ledger.fits for fix in fixes)
    assert str(fixes[0]).startswith("--max-num-batched-tokens ")
    assert not any("utilization" in str(fix) for fix in fixes), "a larger share of what is not there"


def test_loader_and_ledger_share_one_rule(card):
    request = MemoryRequest(kv_cache_bytes=None, num_blocks=None, gpu_memory_utilization=0.9)
    memory = CudaMemory(torch.device("cuda"))
    reserved = 2
    assert memory.free_bytes(request) == memory.budget(request).budget_bytes - 480 * MIB - reserved
    assert memory.kv_share(123, 456) == 123


def test_measured_figures(card, check_of):
    from plugserve.core.contracts.memory import MemoryUse

    use = CudaMemory(torch.device("cuda")).measured(MemoryUse(resident_bytes=9))
    assert (use.resident_bytes, use.device_allocated_bytes, use.device_reserved_bytes) == (9, 1, 2)
    assert (use.device_peak_reserved_bytes, use.device_total_bytes) == (3, 80 * GIB)
