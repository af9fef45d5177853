"""What settings change in an engine that is built of a tiny model with weights made up from its config."""

from __future__ import annotations

import json
from array import array

import pytest
import torch

from plugserve.backends.torch.runner.devices import CudaKind
from plugserve.backends.torch.runner.memory_plan import GIB, MemoryRequest, plan_blocks
from plugserve.core.contracts.engine_facts import EngineInfo
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.engine.build import EngineBuilder, engine_info
from plugserve.core.engine.engine import Engine
from plugserve.core.errors import ConfigError
from plugserve.core.model_files.model_source import resolve
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings_reader import read_settings

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
    "eos_token_id": 63,
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


@pytest.fixture
def build(folder):
    """build(arguments) -> the engine and its facts, made as the command line asks."""

    def build(*arguments: str) -> tuple[Engine, EngineInfo]:
        words = [
            "--load-format",
            "dummy",
            "--device",
            "cpu",
            "--runner",
            "torch",
            "--num-gpu-blocks-override",
            "64",
            *arguments,
        ]
        settings = read_settings(words, {}).settings
        source = resolve(str(folder), load_format="dummy")
        builder = EngineBuilder(settings, PluginHost.load(settings.selection()), source)
        engine, _, info = builder.build()
        return engine, engine_info(info, builder.slots, 0.0)

    return build


@pytest.mark.parametrize(
    ("arguments", "fact", "value"),
    [
        ([], "dtype", "float32"),
        (["--dtype", "bfloat16"], "dtype", "bfloat16"),
        (["--dtype", "half"], "dtype", "float16"),
        ([], "max_model_len", 256),
        (["--max-model-len", "100"], "max_model_len", 100),
        (["--max-model-len", "auto", "--num-gpu-blocks-override", "5"], "max_model_len", 80),
        (["--num-gpu-blocks-override", "33"], "num_blocks", 33),
        (["--block-size", "32"], "block_size", 32),
        (["--plugin", "ngram", "--num-speculative-tokens", "3"], "max_num_drafts", 3),
        ([], "max_num_batched_tokens", 256),
        (["--max-num-batched-tokens", "48"], "max_num_batched_tokens", 48),
    ],
)
def test_setting_is_a_fact_of_the_engine(build, arguments, fact, value):
    assert getattr(build(*arguments)[1], fact) == value


def test_a_length_above_the_models_own_is_said(build, caplog):
    assert build("--max-model-len", "512")[1].max_model_len == 512
    assert "--max-model-len 512 is above the model's own 256" in caplog.text
    caplog.clear()
    build("--max-model-len", "256")
    assert "above the model's own" not in caplog.text


def run(engine: Engine, count: int) -> int:
    """The most sequences that ran at once."""
    for number in range(count):
        params = SamplingParams(max_tokens=4, seed=0, ignore_eos=True)
        engine.admit((b"w", number), array("i", range(1, 21)), params)
    most = 0
    while engine.has_work:
        engine.step()
        most = max(most, engine.snapshot().num_requests_running)
    return most


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_sequences_run_than_max_num_seqs(build, most):
    assert run(build("--max-num-seqs", str(most))[0], 6) == most


@pytest.fixture
def num_blocks_on_card(monkeypatch):
    """Blocks of 16 MiB that fit on a card of 80 GiB, of which the engine has taken weights and others so much."""

    def make(share, weights, others=0):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 * GIB - weights - others, 80 * GIB))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: weights)
        request = MemoryRequest(kv_cache_bytes=None, num_blocks=None, gpu_memory_utilization=share)
        memory = CudaKind(torch.device("cuda")).memory
        return plan_blocks(request, GIB // 64, lambda: memory.kv_share(memory.free_bytes(request), 0))

    return make


def test_gpu_memory_utilization_is_the_share_that_weights_and_blocks_may_take(num_blocks_on_card):
    half, most = (num_blocks_on_card(share, weights=15 * GIB) for share in (0.5, 0.9))
    assert most - half == pytest.approx(0.4 * 80 * 64, abs=1)
    assert (0.5 * 80 - 15 - 1) * 64 < half < (0.5 * 80 - 15) * 64  # less the CUDA context


def test_what_is_offloaded_becomes_room_for_blocks(num_blocks_on_card):
    assert num_blocks_on_card(0.9, weights=7 * GIB) - num_blocks_on_card(0.9, weights=15 * GIB) == 8 * 64


def test_a_share_that_holds_no_block_is_refused(num_blocks_on_card):
    with pytest.raises(ConfigError, match="no room for KV blocks"):
        num_blocks_on_card(0.5, weights=40 * GIB)
