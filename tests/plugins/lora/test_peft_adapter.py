"""Reading an adapter's folder, and every refusal with its cause in one line."""

from __future__ import annotations

import json
import os
import socket

import pytest
import torch

from plugserve.core.contracts.lora import LoraSite, LoraSlice, LoraSpec
from plugserve.core.errors import AdapterError
from plugserve.plugins.lora.peft_adapter import AdapterReader
from tests.lora_samples import write_adapter

PREFIX = "base_model.model.model.layers"
SPEC = LoraSpec(
    num_layers=2,
    sites=(
        LoraSite(
            "qkv",
            6,
            (
                LoraSlice("self_attn.q_proj", 0, 8),
                LoraSlice("self_attn.k_proj", 8, 4),
                LoraSlice("self_attn.v_proj", 12, 4),
            ),
            "self_attn.qkv_proj",
        ),
        LoraSite("down", 10, (LoraSlice("mlp.down_proj", 0, 6),)),
    ),
    dtype="float32",
    device="cpu",
    max_loras=2,
    max_rank=4,
)


def pair(module="0.self_attn.q_proj", size=8, inputs=6, rank=2):
    return {
        f"{PREFIX}.{module}.lora_A.weight": torch.ones(rank, inputs),
        f"{PREFIX}.{module}.lora_B.weight": torch.ones(size, rank),
    }


def read(folder, tensors, spec=SPEC, **config):
    write_adapter(folder, tensors, **{"r": 2, "target_modules": ["q_proj"], **config})
    return AdapterReader(spec).read(folder)


def refusal(folder, tensors, **config):
    with pytest.raises(AdapterError) as caught:
        read(folder, tensors, **config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({"lora_alpha": 16}, 8.0),
        ({"lora_alpha": 3}, 1.5),
        ({"lora_alpha": 4, "use_rslora": True}, 4 / 2**0.5),
        ({"alpha_pattern": {"q_proj": 6}}, 3.0),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 6, "q_proj": 2}}, 3.0),
        ({"alpha_pattern": {"^model.layers.1.*": 6}, "lora_alpha": 10}, 5.0),
        ({"alpha_pattern": {"proj": 6}, "lora_alpha": 10}, 5.0),  # a part of a name is not its end
        ({"r": 4, "rank_pattern": {"q_proj": 2}, "lora_alpha": 10}, 5.0),
    ],
)
def test_scaling_is_multiplied_in(tmp_path, config, scaling):
    weights = read(tmp_path, pair(), **config)
    (part,) = weights.parts["qkv", 0]
    assert part.start == 0
    assert torch.equal(part.a, torch.ones(2, 6))
    torch.testing.assert_close(part.b, torch.full((2, 8), scaling))


def test_tensor_names_with_adapter_name_or_other_prefix_are_accepted(tmp_path):
    spec = LoraSpec(
        **{
            **{name: getattr(SPEC, name) for name in SPEC.__slots__},
            "weight_prefixes": (("model.language_model.", "model."),),
        }
    )
    tensors = {
        "base_model.model.model.language_model.layers.1.mlp.down_proj.lora_A.default.weight": torch.ones(2, 10),
        "base_model.model.model.language_model.layers.1.mlp.down_proj.lora_B.default.weight": torch.ones(6, 2),
    }
    assert list(read(tmp_path, tensors, spec, target_modules=["down_proj"]).parts) == [("down", 1)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_dtype_becomes_the_models(tmp_path, dtype):
    weights = read(tmp_path, {name: tensor.to(dtype) for name, tensor in pair().items()})
    assert weights.parts["qkv", 0][0].a.dtype == torch.float32


def test_loaded_adapter_does_not_change_with_the_file(tmp_path):
    weights = read(tmp_path, pair())
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(b"\0" * file.stat().st_size)
    assert float(weights.parts["qkv", 0][0].a.sum()) == 12.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "does not yet support DoRA"),
        ({"modules_to_save": ["lm_head"]}, "only supports modules_to_save being None"),
        ({"bias": "all"}, "trains biases"),
        ({"lora_bias": True}, "trains biases"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"trainable_token_indices": [1]}, "trains token embeddings"),
        ({"alora_invocation_tokens": [1]}, "activated LoRA"),
        ({"layer_replication": [[0, 1]]}, "repeats layers"),
        ({"target_parameters": ["x"]}, "not projections"),
        ({"r": 5}, "LoRA rank 5 is greater than max_lora_rank 4"),
        ({"rank_pattern": {"v_proj": 64}}, "LoRA rank 64 is greater than max_lora_rank 4"),
        ({"r": 0}, "r must be a rank of at least 1, got 0"),
        ({"r": None}, "r must be a rank of at least 1, got None"),
        ({"r": True}, "r must be a rank"),
        ({"lora_alpha": "much"}, "lora_alpha must be a number, got 'much'"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern must be an object"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "more complex than module names need"),
        ({"alpha_pattern": {"(": 1}}, "not a regular expression"),
        ({"target_modules": ["q_proj", "lm_head"]}, "unknown target module 'lm_head'"),
        ({"target_modules": ["q_proj", "down_proj"]}, "names 'down_proj', for which there are no tensors"),
        ({"target_modules": ["v_proj"]}, "which target_modules does not name"),
        ({"target_modules": 7}, "target_modules must be a list"),
        ({"r": 3}, r"has shape \[2, 6\], the model and the adapter's rank ask for \[3, 6\]"),
    ],
)
def test_unsupported_configs_are_refused(tmp_path, config, message):
    with pytest.raises(AdapterError, match=message):
        read(tmp_path, pair(), **config)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (pair(size=9), "has shape [9, 2]"),
        (pair(inputs=7), "has shape [2, 7]"),
        (pair("2.self_attn.q_proj"), "is for layer 2, the model has 2 layers"),
        (pair("0.mlp.experts_proj"), "unknown target module 'model.layers.0.mlp.experts_proj'"),
        ({"base_model.model.lm_head.lora_A.weight": torch.ones(2, 6)}, "unknown target module 'lm_head'"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 6)}, "would be left out"),
        ({f"{PREFIX}.0.self_attn.q_proj.lora_magnitude_vector": torch.ones(8)}, "would be left out"),
        ({f"{PREFIX}.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 6)}, "stands alone"),
        ({name: tensor.int() for name, tensor in pair().items()}, "only floating numbers"),
        ({name: tensor * float("nan") for name, tensor in pair().items()}, "holds NaN or infinity"),
        ({name: tensor.double() * 1e300 for name, tensor in pair().items()}, "holds NaN or infinity (as float32)"),
        ({**pair(), **{n.replace(".weight", ".x.weight"): t for n, t in pair().items()}}, "same part of one module"),
        ({**pair(), **pair("0.self_attn.qkv_proj", 16)}, "change the same outputs of qkv"),
        ({}, "holds no tensors"),
    ],
)
def test_unsupported_tensors_are_refused(tmp_path, tensors, message):
    assert message in refusal(tmp_path, tensors, target_modules=".*")


def test_folders_without_an_adapter_are_refused(tmp_path):
    reader = AdapterReader(SPEC)

    def why(folder):
        with pytest.raises(AdapterError) as caught:
            reader.read(folder)
        return str(caught.value)

    assert why(tmp_path / "nowhere").endswith("is not a folder")
    assert "adapter_config.json is missing" in why(tmp_path)
    folder = write_adapter(tmp_path / "a", pair(), r=2, target_modules=["q_proj"])
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    whole = weights.read_bytes()
    for broken in (whole[:-4], whole[:20], b"", b"\xff" * 64, (2**60).to_bytes(8, "little") + whole[8:]):
        weights.write_bytes(broken)
        assert "is not a whole safetensors file" in why(folder)
    weights.unlink()
    assert why(folder).endswith("adapter_model.safetensors is missing")
    (folder / "adapter_model.bin").write_bytes(b"")
    assert "adapter_model.bin has to be converted to safetensors" in why(folder)
    for text in ("{", "[]", json.dumps("x"), "[" * 100_000):
        config.write_text(text)
        assert "adapter_config.json" in why(folder)


def test_a_file_larger_than_any_adapter_is_not_read(tmp_path):
    folder = write_adapter(tmp_path, pair(), r=2, target_modules=["q_proj"])
    with (folder / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(10**9)  # sparse: takes no space
    with pytest.raises(AdapterError, match="larger than an adapter of rank 4 can be"):
        AdapterReader(SPEC).read(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("kind", ["FIFO", "socket", "folder", "device"])
def test_files_that_are_no_files_are_refused_without_opening_them(tmp_path, name, kind, monkeypatch):
    write_adapter(tmp_path, pair(), r=2, target_modules=["q_proj"])
    (tmp_path / name).unlink()
    if kind == "FIFO":
        os.mkfifo(tmp_path / name)
    elif kind == "folder":
        (tmp_path / name).mkdir()
    elif kind == "device":
        (tmp_path / name).symlink_to("/dev/zero")
    else:
        monkeypatch.chdir(tmp_path)
        socket.socket(socket.AF_UNIX).bind(name)
    with pytest.raises(AdapterError, match=f"{name} can't be read: it is a {kind}, not a regular file"):
        AdapterReader(SPEC).read(tmp_path)


def test_a_huge_config_is_refused_before_it_is_read(tmp_path):
    write_adapter(tmp_path, pair(), r=2, target_modules=["q_proj"])
    with (tmp_path / "adapter_config.json").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(AdapterError, match="it is too large"):
        AdapterReader(SPEC).read(tmp_path)
