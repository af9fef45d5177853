import json

import pytest
import torch
from safetensors.torch import save_file

from plugserve import cli
from plugserve.backends.torch.models.make_model import parameter_shapes
from plugserve.backends.torch.weights import iterate_weights
from plugserve.core.model_files.model_source import load_text_model, resolve
from tests.server.fakes import byte_level_tokenizer

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 272, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps(CONFIG))
    byte_level_tokenizer().save(str(tmp_path / "m" / "tokenizer.json"))
    (tmp_path / "m" / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "m" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(parameter_shapes(CONFIG), "all.safetensors")})
    )
    torch.manual_seed(0)
    tensors = {name: torch.randn(shape).bfloat16() for name, shape in parameter_shapes(CONFIG).items()}
    save_file(tensors, tmp_path / "m" / "all.safetensors")
    return tmp_path / "m"


def load(path):
    return dict(iterate_weights(resolve(str(path)), show_progress=False))


@pytest.mark.parametrize("arguments", [[], ["--tensor-parallel-size", "2"], ["-tp=2", "--max-file-size", "4KB"]])
def test_a_folder_is_saved_and_read_again(folder, tmp_path, capsys, arguments):
    assert cli.main(["save-sharded", "--model", str(folder), "--output", str(tmp_path / "out"), *arguments]) == 0
    assert f"for {2 if arguments else 1} ranks" in capsys.readouterr().out
    expected, loaded = load(folder), load(tmp_path / "out")
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    text = load_text_model(resolve(str(tmp_path / "out")))
    assert text.chat_template == "{{ messages }}"
    assert not list((tmp_path / "out").glob("*.index.json"))


def test_weights_are_converted_to_the_dtype_asked_for(folder, tmp_path):
    arguments = [str(folder), f"--output={tmp_path / 'out'}", "--dtype", "half"]
    assert cli.main(["save-sharded", *arguments]) == 0
    assert {tensor.dtype for tensor in load(tmp_path / "out").values()} == {torch.float16}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "needs --output FOLDER"),
        (["--output"], "--output needs a value"),
        (["--output", "x", "-tp", "0"], "--tensor-parallel-size must be a whole number from 1 to 1024, got '0'"),
        (["--output", "x", "--max-file-size", "big"], "--max-file-size must be a size such as 5GiB, got 'big'"),
    ],
)
def test_a_fault_is_one_line(capsys, arguments, message):
    assert cli.main(["save-sharded", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_not_empty_is_left_alone(folder, capsys):
    assert cli.main(["save-sharded", "--model", str(folder), "--output", str(folder)]) == 2
    assert "is not empty" in capsys.readouterr().err
