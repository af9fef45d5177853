"""What is predicted before loading is what the loaded model has."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from plugserve.backends.torch.runner import memory_plan
from plugserve.backends.torch.runner.out_of_memory import is_out_of_memory
from plugserve.core.contracts.memory import HOST
from plugserve.core.engine.build import EngineBuilder
from plugserve.core.engine.memory_check import MemoryCheck
from plugserve.core.errors import ConfigError
from plugserve.core.memory import machine
from plugserve.core.memory.machine import HostMemory, ProcessMemory
from plugserve.core.model_files.model_source import resolve
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings import Settings

MIB, GIB = 1 << 20, 1 << 30
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
GEMMA = {
    **LLAMA, "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "head_dim": 16,
    "sliding_window": 32, "query_pre_attn_scalar": 16, "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}  # fmt: skip
BLOCK_BYTES = 16 * 2 * 2 * 16 * 4 * 3  # tokens, keys and values, heads, head_dim, float32, layers


@pytest.fixture
def model_of(tmp_path):
    """A builder's parts for a config without weights and some settings."""

    def make(config, **settings):
        folder = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        chosen = Settings(
            **{"load_format": "dummy", "device": "cpu", "runner": "torch", "max_num_seqs": 4, "threads": 1} | settings
        )
        host = PluginHost.load(chosen.selection())
        host.configure(chosen)
        source = resolve(str(folder), load_format="dummy")
        return SimpleNamespace(check=MemoryCheck(chosen, host, source), build=EngineBuilder(chosen, host, source).build)

    return make


def items(ledger, place=HOST):
    return {item.name: item.size_bytes for item in ledger.place(place).items}


@pytest.mark.parametrize("config", [LLAMA, GEMMA], ids=["llama", "gemma3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_and_kv_are_those_of_the_loaded_model(model_of, config, dtype):
    model = model_of(config, dtype=dtype, kv_cache_memory=MIB)
    ledger = model.check.ledger()
    _, runner, info = model.build()
    runner.close()
    assert items(ledger)["weights"] == info.weight_bytes
    assert items(ledger)["KV cache"] == info.kv_cache_bytes
    assert (ledger.num_kv_tokens, ledger.max_model_len) == (info.num_blocks * 16, info.max_model_len)
    assert (ledger.dtype, ledger.device) == (info.dtype, info.device)
    assert info.memory is not None
    assert items(info.memory)["weights"] == info.weight_bytes


def test_settings_change_what_they_are_about(model_of):
    ledger = items(model_of(LLAMA, kv_cache_memory=MIB).check.ledger())
    rows = items(model_of(LLAMA, kv_cache_memory=MIB, max_num_seqs=8).check.ledger())
    assert rows["logits, sampling"] == 2 * ledger["logits, sampling"] == 8 * 320 * 12
    tokens = items(model_of(LLAMA, kv_cache_memory=MIB, max_num_batched_tokens=512).check.ledger())
    assert tokens["activations"] == 2 * ledger["activations"] > 0
    lora = items(model_of(LLAMA, kv_cache_memory=MIB, enable_lora=True, max_loras=2).check.ledger())
    inputs_and_outputs = 3 * 64 + 128 + 64 + 64 + 2 * 64 + 192 + 96 + 64
    assert lora["LoRA slots"] == 3 * 2 * 16 * inputs_and_outputs * 4
    swap = items(model_of(LLAMA, kv_cache_memory=MIB, swap_space=0.5).check.ledger())
    assert swap["KV blocks in host memory"] == GIB // 2


def test_draft_model_takes_weights_and_blocks(model_of, tmp_path):
    draft = tmp_path / "draft"
    draft.mkdir()
    (draft / "config.json").write_text(json.dumps({**LLAMA, "num_hidden_layers": 1}))
    alone = model_of({**LLAMA, "num_hidden_layers": 1}).check.ledger()
    both = model_of(LLAMA, speculative_model=str(draft)).check.ledger()
    assert items(both)["draft model"] == items(alone)["weights"]
    assert both.kv_bytes_per_token == model_of(LLAMA).check.ledger().kv_bytes_per_token * 4 // 3


@pytest.fixture
def small_machine(monkeypatch):
    """A machine of 4 GiB, so much of which is available; this process has 400 MiB, whatever other tests left in it."""

    def make(available_bytes):
        found = HostMemory(4 * GIB, available_bytes, "machine")
        monkeypatch.setattr("plugserve.backends.torch.runner.device_memory.host_memory", lambda: found)
        monkeypatch.setattr("plugserve.backends.torch.runner.memory_estimate.host_memory", lambda: found)
        own = ProcessMemory(400 * MIB, 400 * MIB)
        monkeypatch.setattr("plugserve.backends.torch.runner.device_memory.process_memory", lambda: own)
        monkeypatch.setattr(memory_plan, "available_memory_bytes", lambda: available_bytes)

    return make


def test_cache_is_1_gib_or_half_of_what_is_free(model_of, small_machine):
    small_machine(3 * GIB)
    assert items(model_of(LLAMA).check.ledger())["KV cache"] == GIB // BLOCK_BYTES * BLOCK_BYTES
    small_machine(GIB)
    assert 0.3 * GIB < items(model_of(LLAMA).check.ledger())["KV cache"] < 0.5 * GIB


def test_cache_holds_one_request_of_the_length_that_the_user_set(model_of, small_machine):
    small_machine(3 * GIB)
    ledger = model_of({**LLAMA, "max_position_embeddings": 1 << 20}, max_model_len=1 << 20).check.ledger()
    assert ledger.num_kv_tokens == 1 << 20
    assert ledger.fits


def test_what_cannot_fit_is_refused_before_loading_and_the_named_fix_loads(model_of, small_machine, caplog):
    small_machine(2 * GIB)
    model = model_of(LLAMA, kv_cache_memory=3 * GIB)
    with pytest.raises(ConfigError, match=r"does not fit: it takes 3\.\d\d GiB of host memory") as refused:
        model.build()
    assert "memory of " in caplog.text
    assert "KV cache" in caplog.text
    size = int(str(refused.value).partition("--kv-cache-memory ")[2].partition("MiB")[0])
    small_machine(2 * GIB)
    assert model_of(LLAMA, kv_cache_memory=size * MIB).check.ledger().fits
    assert size > 1024, "not smaller than need be"


def test_length_that_no_cache_holds_is_refused_with_the_length_that_fits(model_of, small_machine):
    small_machine(GIB // 2)
    config = {**LLAMA, "max_position_embeddings": 1 << 20}
    with pytest.raises(ConfigError, match="smallest change that makes it fit is --max-model-len") as refused:
        model_of(config, max_model_len=1 << 20, max_num_seqs=1).build()
    length = int(str(refused.value).partition("--max-model-len ")[2].split()[0])
    assert model_of(config, max_model_len=length, max_num_seqs=1).check.ledger().fits


def test_memory_that_runs_out_while_loading_is_said_with_the_ledger(model_of, monkeypatch, caplog):
    def fail(*arguments, **named):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 12 bytes")

    monkeypatch.setattr("plugserve.backends.torch.runner.loader.kv_tensors", fail)
    with pytest.raises(ConfigError, match=r"memory ran out while .* can't allocate memory: 12 bytes; it was to take"):
        model_of(LLAMA).build()
    assert "memory of " in caplog.text


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("The size of tensor a (3) must match"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_failed_allocations_are_recognised(error, is_one):
    assert is_out_of_memory(error) is is_one


def test_torch_says_so_for_real():
    with pytest.raises(RuntimeError) as failed:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(failed.value)


def test_estimate_takes_no_memory(model_of):
    large = {**LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256}
    before = machine.process_memory().resident_bytes
    ledger = model_of(large, dtype="bfloat16").check.ledger()
    assert items(ledger)["weights"] > 10 * GIB
    assert machine.process_memory().resident_bytes - before < 64 * MIB
