"""sharded_state: what save-sharded writes is read again, for any number of ranks; vLLM's fused files are read too."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from plugserve.backends.torch.models.make_model import make_model, parameter_shapes
from plugserve.backends.torch.weights import iterate_weights
from plugserve.backends.torch.weights.save_sharded import save_sharded
from plugserve.core.errors import ConfigError, ModelError
from plugserve.core.model_files.model_source import resolve
from tests.core.harness import LocalEngine, randomise

CONFIG = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 8, "vocab_size": 199, "max_position_embeddings": 256,
    "tie_word_embeddings": False, "attention_bias": True, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    """(config, tensors) of a tiny model with every parameter random."""
    torch.manual_seed(0)
    made = randomise(LlamaForCausalLM(LlamaConfig(**CONFIG)).float())
    config = made.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    return config, {name: tensor.detach().clone() for name, tensor in made.state_dict().items()}


def save(folder, model, num_ranks=1, max_file_bytes=1 << 30):
    config, tensors = model
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return save_sharded(folder, tensors.items(), make_model(config), num_ranks=num_ranks, max_file_bytes=max_file_bytes)


def load(folder, load_format="sharded_state"):
    source = resolve(str(folder), load_format=load_format)
    return dict(iterate_weights(source, load_format=load_format, show_progress=False))


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("max_file_bytes", [1 << 30, 20_000])
def test_what_is_saved_for_n_ranks_is_read_whole(tmp_path, model, num_ranks, max_file_bytes):
    """4 key-value heads: 8 ranks hold each twice; 199 tokens are padded for 2, 4 and 8 ranks."""
    saved = save(tmp_path / "m", model, num_ranks, max_file_bytes)
    assert saved.num_files == len(list((tmp_path / "m").glob("model-rank-*")))
    assert (saved.num_files > num_ranks) == (max_file_bytes < 1 << 30)
    loaded = load(tmp_path / "m")
    assert loaded.keys() == model[1].keys()
    for name, tensor in loaded.items():
        torch.testing.assert_close(tensor, model[1][name], rtol=0, atol=0)


def test_saved_and_loaded_weights_give_equal_tokens(tmp_path, model):
    config, tensors = model
    save(tmp_path / "m", model, num_ranks=2)
    prompts = [[3, 5, 8], [60] * 20]
    with LocalEngine(config, tensors, max_model_len=128) as local:
        expected = local.generate(prompts, max_tokens=12)
    with LocalEngine(config, load(tmp_path / "m"), max_model_len=128) as local:
        assert local.generate(prompts, max_tokens=12) == expected


def test_auto_takes_the_format_for_such_a_folder(tmp_path, model, caplog):
    save(tmp_path / "m", model, num_ranks=2)
    caplog.set_level("INFO")
    assert load(tmp_path / "m", "auto").keys() == model[1].keys()
    assert "load format auto chose=sharded_state" in caplog.text
    with pytest.raises(ModelError, match=r"safetensors does not fit .*its \*\.safetensors are those of sharded_state"):
        load(tmp_path / "m", "safetensors")


def test_files_of_fused_projections_are_taken_apart_rank_by_rank(tmp_path, model):
    """As vLLM writes them: qkv_proj and gate_up_proj, each rank's parts one after another."""
    save(tmp_path / "m", model, num_ranks=2)
    for path in (tmp_path / "m").glob("model-rank-*"):
        tensors = load_file(path)
        fused = {}
        for name, tensor in tensors.items():
            if ".q_proj." in name:
                parts = [tensor, *(tensors[name.replace("q_proj", other)] for other in ("k_proj", "v_proj"))]
                fused[name.replace("q_proj", "qkv_proj")] = torch.cat(parts)
            elif ".gate_proj." in name:
                fused[name.replace("gate_proj", "gate_up_proj")] = torch.cat(
                    [tensor, tensors[name.replace("gate_proj", "up_proj")]]
                )
            elif not any(f".{part}." in name for part in ("k_proj", "v_proj", "up_proj")):
                fused[name] = tensor
        save_file(fused, path)
    loaded = load(tmp_path / "m")
    assert loaded.keys() == model[1].keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model[1].items())


@pytest.mark.parametrize("lost", ["model-rank-1-part-0", "model-rank-0-part-1", "model-rank-0-part-0"])
def test_a_missing_file_is_named(tmp_path, model, lost):
    save(tmp_path / "m", model, num_ranks=2, max_file_bytes=100_000)
    (tmp_path / "m" / f"{lost}.safetensors").unlink()
    with pytest.raises(ModelError, match=f"{lost}.safetensors is missing"):
        load(tmp_path / "m", "auto")


def test_a_missing_last_rank_is_named(tmp_path, model):
    save(tmp_path / "m", model, num_ranks=4)
    (tmp_path / "m" / "model-rank-3-part-0.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-rank-3-part-0\.safetensors is missing"):
        load(tmp_path / "m")


def test_a_truncated_file_says_so_with_both_sizes(tmp_path, model):
    save(tmp_path / "m", model)
    path = tmp_path / "m" / "model-rank-0-part-0.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(
        ModelError, match=f"truncated, its header describes {len(data)} bytes, it has {len(data) - 100}"
    ):
        load(tmp_path / "m")
    path.write_bytes(data[:50])
    with pytest.raises(ModelError, match="truncated, its 50 bytes end within its header"):
        load(tmp_path / "m")


def test_shards_of_another_model_are_refused_with_both_shapes(tmp_path, model):
    save(tmp_path / "m", model, num_ranks=2)
    config = model[0] | {"intermediate_size": 64}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"mlp\.\w+_proj\.weight has shape \[.*48.*\] in each of 2 .* asks for \[.*64"):
        load(tmp_path / "m")


def test_ranks_that_hold_different_shards_are_refused(tmp_path, model):
    save(tmp_path / "m", model, num_ranks=2)
    path = tmp_path / "m" / "model-rank-1-part-0.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name][:10].clone()}, path)
    with pytest.raises(ModelError, match=rf"{name}: the ranks hold different shards \(\[48, 48\], \[10, 48\]\)"):
        load(tmp_path / "m")
    del tensors[name]
    save_file(tensors, path)
    with pytest.raises(ModelError, match=f"rank 1 of the sharded checkpoint lacks tensor {name}"):
        load(tmp_path / "m")


@pytest.mark.parametrize("num_ranks", [3, 16])
def test_ranks_that_cannot_share_the_heads_are_refused(tmp_path, model, num_ranks):
    with pytest.raises(ConfigError, match=f"--tensor-parallel-size {num_ranks} can't share 8 attention heads"):
        save(tmp_path / "m", model, num_ranks)


def test_key_value_heads_that_ranks_cannot_share_or_repeat_are_refused(tmp_path, model):
    config = model[0] | {"num_attention_heads": 6, "num_key_value_heads": 3}
    shapes = parameter_shapes(config)
    odd = config, {name: torch.zeros(shape) for name, shape in shapes.items()}
    with pytest.raises(ConfigError, match="--tensor-parallel-size 2 can't share 3 key-value heads"):
        save(tmp_path / "m", odd, 2)
