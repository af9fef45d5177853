"""`plugserve config show` and `plugserve config schema`."""

import json

import pytest

from plugserve import cli
from plugserve.core.settings.settings import setting_facts
from tests.core.settings.schema_check import errors
from tests.fake_distributions import WITH_OPTIONS, FakeDistributions

FILE = """
max_num_seqs: 64
block-size: 32
port: null
gpu_mem_util: 0.5
speculative_config: {method: ngram, num_speculative_tokens: 4, prompt_lookup_max: 3}
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "serve.yaml"
    path.write_text(FILE)
    return path


def show(capsys, *arguments):
    assert cli.main(["config", "show", *arguments]) == 0
    return capsys.readouterr()


def rows(printed):
    return {line.split()[0]: line for line in printed.out.splitlines()[1:]}


def test_each_value_is_shown_with_its_place(capsys, monkeypatch, file):
    monkeypatch.setenv("PLUGSERVE_MAX_MODEL_LEN", "16k")
    printed = show(capsys, "m", "--config", "serve.yaml", "--max-num-seqs", "8", "--api-workers", "1")
    found = {name: line.split(maxsplit=2)[1:] for name, line in rows(printed).items()}
    assert found["model"] == ["m", "MODEL"]
    assert found["max_num_seqs"] == ["8", "--max-num-seqs"]
    assert found["api_workers"] == ["1", "--api-workers"]
    assert found["max_model_len"] == ["16384", "PLUGSERVE_MAX_MODEL_LEN in the environment"]
    assert found["block_size"] == ["32", f"block-size in {file}"]
    assert found["gpu_memory_utilization"] == ["0.5", f"gpu_mem_util in {file}, another name"]
    assert found["num_speculative_tokens"] == [
        "4",
        f"num_speculative_tokens of speculative_config in {file}, another name",
    ]
    assert found["plugin"] == ["ngram", f"speculative_config in {file}, another name"]
    assert found["ngram.max_n"] == ["3", f"ngram.max_n of speculative_config in {file}, another name"]
    assert found["port"] == ["8000", "default"]
    assert found["dtype"] == ["auto", "default"]
    assert set(found) >= set(setting_facts())
    assert printed.err == "plugserve: warning: gpu_mem_util in serve.yaml is taken as gpu_memory_utilization\n"


def test_given_leaves_out_defaults(capsys, file):
    printed = show(capsys, "--given", "--config", "serve.yaml")
    assert set(rows(printed)) == {"block_size", "max_num_seqs", "gpu_memory_utilization", "num_speculative_tokens",
                                  "plugin", "config", "ngram.max_n", "ngram.min_n"}  # fmt: skip


def test_json_has_values_and_origins(capsys, file):
    found = json.loads(show(capsys, "--json", "--config", "serve.yaml", "--enforce-eager").out)
    settings = found["settings"]
    assert settings["enforce_eager"] == {
        "value": True, "from": "command line", "as": "--enforce-eager", "is_alias": False
    }  # fmt: skip
    assert settings["max_num_seqs"] == {
        "value": 64, "from": "file", "as": "max_num_seqs", "is_alias": False, "path": str(file)
    }  # fmt: skip
    assert settings["port"] == {"value": 8000, "from": "default"}
    assert found["warnings"] == ["gpu_mem_util in serve.yaml is taken as gpu_memory_utilization"]


def test_secrets_are_never_shown(capsys, tmp_path, monkeypatch):
    packages = FakeDistributions(tmp_path, monkeypatch)
    packages.add("spt", SECRET)
    monkeypatch.setenv("VLLM_API_KEY", "hidden-one")
    arguments = ["--scheduler", "spt", "--spt.password", "hidden-two"]
    for more in ([], ["--json"], ["--api-key", "hidden-three"]):
        printed = show(capsys, *arguments, *more)
        assert "hidden" not in printed.out + printed.err
        assert printed.out.count("***") == 2


def test_passwords_in_urls_are_never_shown(capsys):
    url = "http://ada:hidden@collector:4318/v1/traces"
    for more in ([], ["--json"]):
        printed = show(capsys, "--otlp-traces-endpoint", url, *more)
        assert "http://***@collector:4318/v1/traces" in printed.out
        assert "hidden" not in printed.out + printed.err


SECRET = """
from pydantic import BaseModel, SecretStr
from plugserve import hookimpl
from plugserve.plugins.schedulers.fcfs import FcfsScheduler

class Options(BaseModel):
    password: SecretStr | None = None

@hookimpl
def plugserve_options():
    return Options

@hookimpl
def plugserve_schedulers():
    return {"spt": lambda context: FcfsScheduler()}
"""


def test_what_serve_refuses_is_refused(capsys):
    for arguments in (["--max-num-seq", "1"], ["-dpl", "2"], ["--load-format", "mine"], ["--lora-modules", "a=b"]):
        assert cli.main(["config", "show", *arguments]) == 2
        assert capsys.readouterr().out == ""


def test_a_subcommand_is_needed(capsys):
    assert cli.main(["config"]) == 2
    assert cli.main(["config", "shema"]) == 2
    assert "Did you mean 'schema'?" in capsys.readouterr().err


def test_schema_has_the_options_of_active_plugins(capsys, tmp_path, monkeypatch):
    packages = FakeDistributions(tmp_path, monkeypatch)
    packages.add("spt", WITH_OPTIONS)
    assert cli.main(["config", "schema", "--scheduler", "spt"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert errors({"plugins": {"spt": {"aging_tokens": 5}}}, schema) == []
    assert errors({"plugins": {"spt": {"aging_token": 5}}}, schema)
