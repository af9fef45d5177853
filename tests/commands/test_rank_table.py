"""Which process of a model runs where, as `plugserve doctor` shows it."""

from types import SimpleNamespace

import pytest

from plugserve.commands.rank_table import rank_table
from plugserve.core.contracts.memory import HOST, MemoryItem, MemoryLedger, MemoryPlace
from plugserve.core.model_files.architectures import describe
from plugserve.core.settings.settings import Settings

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 7, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "max_position_embeddings": 128, "tie_word_embeddings": False,
}  # fmt: skip


def ledger(device="cuda:0", needed=4, budget=10):
    place = MemoryPlace(
        name=HOST if device == "cpu" else device, title="", total_bytes=10, other_bytes=0, budget_bytes=budget,
        items=(MemoryItem("all", needed),),
    )  # fmt: skip
    return MemoryLedger(
        device=device, dtype="float32", places=(place,), kv_bytes_per_token=1, num_kv_tokens=1, max_model_len=1,
        asked_model_len=None, max_num_seqs=1, max_num_batched_tokens=1,
    )  # fmt: skip


def settings(tensor=1, pipeline=1, data=1, executor="mp"):
    return SimpleNamespace(
        num_ranks=tensor * pipeline, pipeline_parallel_size=pipeline, data_parallel_size=data, executor=executor
    )


def test_one_process_has_no_table():
    assert rank_table(Settings(), None, ledger(), 1) is None


def test_ranks_engines_and_stages_have_their_gpus():
    table = rank_table(settings(2, 2, 2), describe(LLAMA), ledger(), 8)
    assert table.problem == ""
    lines = [(one.engine, one.rank, one.device, one.stage, one.layers, one.share) for one in table.lines]
    assert lines[:4] == [
        (0, 0, "cuda:0", 0, "0-3", "1 of 2"),
        (0, 1, "cuda:1", 0, "0-3", "2 of 2"),
        (0, 2, "cuda:2", 1, "4-6", "1 of 2"),
        (0, 3, "cuda:3", 1, "4-6", "2 of 2"),
    ]
    assert [one.device for one in table.lines[4:]] == ["cuda:4", "cuda:5", "cuda:6", "cuda:7"]
    assert "  engine 1 rank 3  cuda:7    stage 1, layers 4-6, share 2 of 2 of each layer" in table.as_text()


def test_too_few_gpus():
    table = rank_table(settings(2, data=2), describe(LLAMA), ledger(), 3)
    assert "they don't fit: 4 GPUs are needed, this machine has 3" in table.as_text()
    assert rank_table(settings(2, data=2, executor="ray"), None, ledger(), 3).problem == ""


@pytest.mark.parametrize(("data", "problem"), [(2, ""), (3, "3 times 4 B are 12 B, 10 B of host memory can be had")])
def test_processes_on_a_cpu_share_its_memory(data, problem):
    assert rank_table(settings(data=data), None, ledger("cpu"), 0).problem.startswith(problem)
