"""`plugserve plan` as a user calls it."""

import json

import msgspec
import pytest

from plugserve.cli import main
from plugserve.plan.parts import MEASURED

LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 131072, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    return str(tmp_path)


def plan(capsys, *words):
    code = main(["plan", *words])
    return code, capsys.readouterr()


def test_a_plan_marks_its_choice_and_names_the_settings(model, capsys):
    code, printed = plan(capsys, model, "--gpus", "4", "--rows", "32")
    assert code == 0
    (chosen,) = [line for line in printed.out.splitlines() if line.startswith("*")]
    assert "TP 1 x PP 1 x DP 4" in printed.out
    assert "- its weights don't fit" in printed.out
    split = chosen.removeprefix("* ").split("  ")[0]
    assert f"chosen for throughput: {split}    plugserve {model} --" in printed.out


def test_json_has_every_split(model, capsys):
    code, printed = plan(capsys, model, "--gpus", "8", "--nodes", "2", "--gpu", "h200", "--for", "latency", "--json")
    assert code == 0
    content = json.loads(printed.out)
    assert len(content["splits"]) == 10
    assert content["chosen"]["tp"] * content["chosen"]["pp"] * content["chosen"]["dp"] == 8
    assert [one.partition(":")[0] for one in content["not_measured"]] == ["h200", "ethernet"]


def test_nothing_fits(model, capsys):
    code, printed = plan(capsys, model, "--gpus", "1")
    assert code == 2
    assert "no split fits" in printed.out
    code, printed = plan(capsys, model, "--gpus", "1", "--weight-bytes", "0.5")
    assert code == 0


def test_parts_from_a_file(model, capsys, tmp_path):
    file = tmp_path / "parts.json"
    slow = msgspec.structs.replace(MEASURED.links["nvlink"], all_reduce_us=((0, 10_000.0), (1, 10_000.0)))
    parts = msgspec.structs.replace(MEASURED, links={"nvlink": slow})
    file.write_bytes(msgspec.json.encode(parts))
    _, printed = plan(capsys, model, "--gpus", "2", "--parts", str(file), "--json")
    by_split = {(one["split"]["tp"], one["split"]["pp"]): one for one in json.loads(printed.out)["splits"]}
    assert by_split[2, 1]["one_row_ms"] > 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "plugserve plan needs --gpus N"),
        (["--gpus", "0"], "--gpus must be a whole number from 1 to 4096, got '0'"),
        (["--gpus", "4", "--nodes", "3"], "--nodes 3 must divide --gpus 4"),
        (["--gpus", "2", "--gpu", "k80"], "--gpu must be h100 or h200 or a100, got 'k80'"),
        (["--gpus", "2", "--link", "wifi"], "--link must be nvlink or pcie or ethernet, got 'wifi'"),
        (["--gpus", "2", "--for", "fun"], "--for must be throughput or latency, got 'fun'"),
        (["--gpus", "2", "--weight-bytes", "x"], "--weight-bytes must be a number from 0.1 to 4, got 'x'"),
        (["--gpus", "2", "--parts", "/nowhere.json"], "--parts /nowhere.json: "),
    ],
)
def test_mistakes_are_one_line(model, capsys, words, message):
    code, printed = plan(capsys, model, *words)
    assert code == 2
    (line,) = printed.err.strip().splitlines()
    assert message in line
