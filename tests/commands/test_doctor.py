"""`plugserve doctor` as a user runs it: the report, the fix that works, exit codes, JSON."""

from __future__ import annotations

import json
import socket

import pytest

from plugserve import cli
from plugserve.commands import machine_checks
from plugserve.core.memory.machine import host_memory
from tests.backends.cpu.native_models import needs_library


@pytest.fixture
def doctor(capsys):
    def run(*words):
        code = cli.main(["doctor", "--port", "0", *map(str, words)])
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def llama(tmp_path):
    """A folder with a config alone."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632,
        "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    }  # fmt: skip
    folder = tmp_path / "TinyLlama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@needs_library
def test_embedded_model_fits(doctor):
    code, out = doctor("--kv-cache-memory", "64MiB")
    assert code == 0, out
    for words in ("SmolLM2", "92 MiB  packed; 92 MiB as Q4_1", "it fits", "23040 bytes a token", "ok    port"):
        assert words in out


@needs_library
def test_a_config_alone_is_enough(doctor, llama):
    code, out = doctor(llama, "--kv-cache-memory", "64MiB", "--dtype", "float32")
    assert code == 0
    assert "weights            4.10 GiB  as float32" in out
    assert "2.05 GiB  packed" in doctor(llama, "--kv-cache-memory", "64MiB")[1]


def test_named_fix_works(doctor, llama):
    code, out = doctor(llama, "--kv-cache-memory", "900TiB")
    assert code == 2
    fix = out.partition("the smallest change that makes it fit is ")[2].split("\n")[0].split()
    assert fix[0] == "--kv-cache-memory"
    code, out = doctor(llama, *fix)
    assert code == 0, out


@needs_library
def test_a_length_gets_the_cache_that_it_needs(doctor):
    code, out = doctor("--dtype", "float32", "--max-model-len", "4096", "--kv-cache-memory", "100MiB")
    assert code == 2
    assert "one request of --max-model-len 4096 takes 180 MiB of KV cache, which holds 2272 tokens" in out
    assert "is --kv-cache-memory 180MiB (or --max-model-len 2048, or --dtype bfloat16)" in out
    for length, size in (("4096", "180MiB"), ("2048", "100MiB")):
        assert doctor("--dtype", "float32", "--max-model-len", length, "--kv-cache-memory", size)[0] == 0
    assert doctor("--max-model-len", "4096", "--kv-cache-memory", "90MiB")[0] == 0, "the native cache takes half of it"


def test_a_length_above_the_models_own_is_a_warning(doctor, llama):
    code, out = doctor(llama, "--max-model-len", "4096")
    assert code == 0
    assert "warning: --max-model-len 4096 is above the model's own 2048: tokens beyond that" in out
    assert "warning" not in doctor(llama, "--max-model-len", "2048")[1]
    (model,) = json.loads(doctor(llama, "--max-model-len", "4096", "--json")[1])["models"]
    assert model["warning"].startswith("--max-model-len 4096 is above")


def test_json_has_every_figure(doctor, llama):
    code, out = doctor("--json", llama, "--kv-cache-memory", "900TiB")
    report = json.loads(out)
    assert (code, report["ok"]) == (2, False)
    (model,) = report["models"]
    assert model["fits"] is False
    assert model["fixes"][0]["changes"]["kv_cache_memory"] > 0
    (place,) = model["ledger"]["places"]
    assert place["needed_bytes"] == sum(item["size_bytes"] for item in place["items"])
    assert place["missing_bytes"] == place["needed_bytes"] - place["budget_bytes"] > 0
    assert {check["name"] for check in report["machine"]} >= {"processor", "memory", "GPU", "port", "open files"}


def test_models_that_fit_alone_may_not_fit_together(doctor, smollm2_gguf):
    most_mib = host_memory().available_bytes * 55 // 100 >> 20
    words = ("--kv-cache-memory", f"{most_mib}MiB")
    assert doctor("--model", smollm2_gguf, *words)[0] == 0
    code, out = doctor("--model", smollm2_gguf, "--model", f"other={smollm2_gguf}", *words)
    assert code == 2
    assert out.count("it fits") == 2
    assert "together the models take" in out


def test_unknown_model_has_no_report(doctor):
    code, out = doctor("./nowhere")
    assert (code, out) == (2, "")


def test_port_in_use_is_said_with_a_free_one():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        check = machine_checks._port("127.0.0.1", taken.getsockname()[1])
    assert check.status == "fail"
    assert "is in use" in check.text
    assert check.fix.startswith("--port ")


def test_few_open_files_are_a_warning(monkeypatch):
    monkeypatch.setattr(machine_checks.resource, "getrlimit", lambda what: (256, 1024))
    check = machine_checks._open_files()
    assert (check.status, check.text) == ("warn", "at most 1024")
    assert "ulimit -n" in check.fix


def test_full_disk_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1 << 20})())
    check = machine_checks._disk("cache", str(tmp_path / "not" / "there"), "move it")
    assert check.status == "warn"
    assert "1 MiB free" in check.line


def test_gpu_that_torch_does_not_find(monkeypatch):
    from plugserve.core.settings.settings import Settings

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(machine_checks.os.path, "exists", lambda path: True)
    (check,) = machine_checks._gpu(Settings())
    assert check.status == "warn"
    (check,) = machine_checks._gpu(Settings(device="cuda"))
    assert check.status == "fail"
    assert "finds no CUDA device" in check.line


def test_encoder_has_no_cache(doctor, tmp_path):
    config = {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 1000, "max_position_embeddings": 128,
    }  # fmt: skip
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    code, out = doctor(folder)
    assert code == 0, out
    assert "as float32" in out
    assert "KV cache" not in out
    assert "more than the 128 positions of this encoder" in doctor(folder, "--max-model-len", "500")[1]


@needs_library
def test_models_of_the_table_have_their_own_settings(doctor, tmp_path, llama, smollm2_gguf):
    file = tmp_path / "server.yaml"
    file.write_text(
        f"models:\n  small:\n    model: {smollm2_gguf}\n    kv_cache_memory: 32MiB\n"
        f"  large:\n    model: {llama}\n    load_format: dummy\n    dtype: bfloat16\n    kv_cache_memory: 900TiB\n"
    )
    code, out = doctor("--config", file)
    assert code == 2
    assert "32 MiB  91 blocks" in out
    assert "2.05 GiB  packed" in out
    assert out.count("it fits") == 1
    assert "together the models take" not in out, "they load on demand"


def test_processes_of_a_model_are_listed(doctor):
    code, out = doctor("--tensor-parallel-size", 3, "--data-parallel-size", 2, "--kv-cache-memory", "64MiB")
    assert code == 0, out
    assert "6 processes, started by mp" in out
    assert "  engine 1 rank 2  cpu       share 3 of 3 of each layer" in out
    code, out = doctor("--data-parallel-size", 900, "--kv-cache-memory", "64MiB", "--json")
    assert code == 2
    (model,) = json.loads(out)["models"]
    assert (model["fits"], len(model["ranks"]["processes"])) == (False, 900)
    assert "of host memory can be had; lower --kv-cache-memory" in model["problem"]
