"""Quantised checkpoints: a known matrix is packed by each format's own definition, and comes back.

The packers below are written element by element from the formats' descriptions, not from the code under test.
"""

import json

import pytest
import torch
from safetensors.torch import save_file

from plugserve.backends.torch.weights import iterate_weights
from plugserve.core.errors import ModelError
from plugserve.core.model_files.model_source import resolve

OUT, IN, GROUP = 16, 64, 16


def load(folder, config, tensors):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": config}))
    # file order is by name: parts of a layer come between other tensors
    save_file(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
        folder / "model.safetensors",
    )
    return dict(iterate_weights(resolve(str(folder)), show_progress=False))


def integers(low, high, *shape, seed=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def scales_of(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.5


def pack_words(values, bits):
    """[rows, n] unsigned to int32 [rows, n / (32 / bits)], the first value in the lowest bits."""
    per_word = 32 // bits
    rows = []
    for row in values.tolist():
        words = []
        for start in range(0, len(row), per_word):
            word = sum(value << (bits * i) for i, value in enumerate(row[start : start + per_word]))
            words.append(word - (1 << 32) if word >= 1 << 31 else word)
        rows.append(words)
    return torch.tensor(rows, dtype=torch.int32)


def grouped(scales, group=GROUP):
    """[n, groups] to one an element [n, groups * group]."""
    return torch.stack([scales[:, i // group] for i in range(scales.shape[1] * group)], 1)


# ---------------------------------------------------------------- fp8


@pytest.mark.parametrize("shape", [(), (1,), (OUT, 1)])
def test_fp8_with_a_scale_a_tensor_or_a_row(tmp_path, shape):
    weight = torch.randn(OUT, IN).to(torch.float8_e4m3fn)
    scale = scales_of(*shape)
    loaded = load(
        tmp_path / "m",
        {"quant_method": "fp8", "activation_scheme": "static"},
        {"a.weight": weight, "a.weight_scale": scale, "a.input_scale": scale, "norm.weight": torch.ones(3)},
    )
    assert loaded.keys() == {"a.weight", "norm.weight"}
    torch.testing.assert_close(loaded["a.weight"], weight.float() * scale.reshape(-1, 1))


def test_fp8_with_a_scale_a_block_whose_last_blocks_are_cut(tmp_path):
    """DeepSeek's and Qwen's: weight_scale_inv multiplies blocks of 128 x 128."""
    weight = torch.randn(300, 200).to(torch.float8_e4m3fn)
    scale = scales_of(3, 2)
    config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    loaded = load(tmp_path / "m", config, {"a.weight": weight, "a.weight_scale_inv": scale})
    expected = weight.float()
    for i in range(3):
        for j in range(2):
            expected[i * 128 : (i + 1) * 128, j * 128 : (j + 1) * 128] *= scale[i, j]
    torch.testing.assert_close(loaded["a.weight"], expected)


# ---------------------------------------------------------------- compressed-tensors


def compressed(form, **weights):
    scheme = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"} | weights
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"weights": scheme, "targets": ["Linear"]}},
        "ignore": ["lm_head"],
    }


@pytest.mark.parametrize("form", ["naive-quantized", "int-quantized"])
@pytest.mark.parametrize("shape", [(1,), (OUT, 1), (OUT, IN // GROUP)])
def test_compressed_int8(tmp_path, form, shape):
    weight = integers(-128, 128, OUT, IN).to(torch.int8)
    scale = scales_of(*shape)
    loaded = load(tmp_path / "m", compressed(form), {"a.weight": weight, "a.weight_scale": scale, "b.bias": scale})
    wide = grouped(scale) if shape[-1] == IN // GROUP else scale.reshape(-1, 1)
    torch.testing.assert_close(loaded["a.weight"], weight.float() * wide)
    assert loaded.keys() == {"a.weight", "b.bias"}


def test_compressed_int8_with_zero_points(tmp_path):
    weight, zero = integers(-128, 128, OUT, IN).to(torch.int8), integers(-9, 9, OUT, 1, seed=3).to(torch.int8)
    scale = scales_of(OUT, 1)
    tensors = {"a.weight": weight, "a.weight_scale": scale, "a.weight_zero_point": zero}
    loaded = load(tmp_path / "m", compressed("int-quantized", symmetric=False), tensors)
    torch.testing.assert_close(loaded["a.weight"], (weight.float() - zero) * scale)


def test_compressed_fp8(tmp_path):
    weight = torch.randn(OUT, IN).to(torch.float8_e4m3fn)
    scale = scales_of(OUT, 1).to(torch.bfloat16)
    loaded = load(
        tmp_path / "m",
        compressed("float-quantized", type="float"),
        {"a.weight": weight, "a.weight_scale": scale, "lm_head.weight": torch.ones(2, 2)},
    )
    torch.testing.assert_close(loaded["a.weight"], weight.float() * scale.float())
    assert loaded["lm_head.weight"].sum() == 4


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [IN, IN + 3])
def test_compressed_packed_integers(tmp_path, bits, columns):
    half = 1 << (bits - 1)
    values = integers(-half, half, OUT, columns)
    padded = torch.nn.functional.pad(values + half, (0, -columns % (32 // bits)))
    scale = scales_of(OUT, IN // GROUP if columns == IN else 1)
    tensors = {
        "a.weight_packed": pack_words(padded, bits),
        "a.weight_scale": scale,
        "a.weight_shape": torch.tensor([OUT, columns]),
    }
    loaded = load(tmp_path / "m", compressed("pack-quantized", num_bits=bits, strategy="group"), tensors)
    torch.testing.assert_close(loaded["a.weight"], values * (grouped(scale) if columns == IN else scale))


@pytest.mark.parametrize("is_reordered", [False, True])
def test_compressed_packed_integers_with_zero_points_and_order(tmp_path, is_reordered):
    """Zero points are packed down the columns; g_idx names each column's group."""
    values, zeros = integers(-8, 8, OUT, IN), integers(-8, 8, OUT, IN // GROUP, seed=3)
    scale = scales_of(OUT, IN // GROUP)
    order = torch.arange(IN) // GROUP
    if is_reordered:
        order = order[torch.randperm(IN, generator=torch.Generator().manual_seed(5))]
    tensors = {
        "a.weight_packed": pack_words(values + 8, 4),
        "a.weight_scale": scale,
        "a.weight_shape": torch.tensor([OUT, IN]),
        "a.weight_zero_point": pack_words(zeros.T + 8, 4).T,
    }
    scheme = {"num_bits": 4, "strategy": "group", "symmetric": False}
    if is_reordered:
        tensors["a.weight_g_idx"] = order.to(torch.int32)
        scheme["actorder"] = "group"
    loaded = load(tmp_path / "m", compressed("pack-quantized", **scheme), tensors)
    torch.testing.assert_close(loaded["a.weight"], (values - zeros[:, order]) * scale[:, order])


# ---------------------------------------------------------------- AWQ and GPTQ


def test_awq_gemm(tmp_path):
    """Of each 8 output columns the nibbles hold 0, 2, 4, 6, 1, 3, 5, 7, lowest first."""
    values, zeros = integers(0, 16, IN, OUT), integers(0, 16, IN // GROUP, OUT, seed=3)
    scale = scales_of(IN // GROUP, OUT).half()

    def pack(matrix):
        order = [start + i for start in range(0, OUT, 8) for i in (0, 2, 4, 6, 1, 3, 5, 7)]
        return pack_words(matrix[:, order], 4)

    tensors = {"a.qweight": pack(values), "a.qzeros": pack(zeros), "a.scales": scale, "a.bias": torch.ones(OUT)}
    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}
    loaded = load(tmp_path / "m", config, tensors)
    expected = torch.empty(OUT, IN)
    for i in range(IN):
        expected[:, i] = (values[i] - zeros[i // GROUP]) * scale[i // GROUP].float()
    torch.testing.assert_close(loaded["a.weight"], expected)
    assert loaded.keys() == {"a.weight", "a.bias"}


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("is_symmetric", [True, False])
@pytest.mark.parametrize("order", ["desc_act", "in order", "left out"])
def test_gptq(tmp_path, bits, is_symmetric, order):
    """Rows are packed into words; zero points are stored less one, packed by columns."""
    num_groups = IN // GROUP
    values = integers(0, 1 << bits, IN, OUT)
    zeros = torch.full((num_groups, OUT), 1 << (bits - 1))
    if not is_symmetric:
        zeros = integers(1, 1 << bits, num_groups, OUT, seed=3)
    scale = scales_of(num_groups, OUT).half()
    groups = torch.arange(IN) // GROUP
    if order == "desc_act":
        groups = groups[torch.randperm(IN, generator=torch.Generator().manual_seed(5))]
    tensors = {
        "a.qweight": pack_words(values.T, bits).T,
        "a.qzeros": pack_words(zeros - 1, bits),
        "a.scales": scale,
        "a.g_idx": groups.to(torch.int32),
    }
    if order == "left out":
        del tensors["a.g_idx"]
    config = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": order == "desc_act"}
    loaded = load(tmp_path / "m", config | {"sym": is_symmetric}, tensors)
    expected = torch.empty(OUT, IN)
    for i in range(IN):
        expected[:, i] = (values[i] - zeros[groups[i]]) * scale[groups[i]].float()
    torch.testing.assert_close(loaded["a.weight"], expected)


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"quant_method": "bitsandbytes"},
            "quant_method 'bitsandbytes' are not supported; supported are awq, compressed-tensors",
        ),
        ({"quant_method": "mxfp4"}, "quant_method 'mxfp4'"),
        ({"bits": 4}, "quant_method 'unknown'"),
        ("int8", "quantization_config should be an object, got 'int8'"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "awq checkpoints with version 'gemv'"),
        ({"quant_method": "awq", "bits": 8}, "awq checkpoints with bits 8"),
        ({"quant_method": "gptq", "bits": 3}, "gptq checkpoints with bits 3"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        (compressed("marlin-24", num_bits=4), "format 'marlin-24"),
        (compressed("nvfp4-pack-quantized", num_bits=4, type="float"), "format 'nvfp4"),
    ],
)
def test_other_quantisation_is_refused_in_one_line(tmp_path, config, message):
    with pytest.raises(ModelError, match=message) as caught:
        load(tmp_path / "m", config, {"x": torch.zeros(1)})
    assert "\n" not in str(caught.value)


def test_a_layer_that_is_not_whole_is_named(tmp_path):
    config = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True}
    parts = {"a.b.qweight": torch.zeros(8, OUT, dtype=torch.int32), "a.b.scales": torch.ones(4, OUT)}
    with pytest.raises(ModelError, match=r"layer a\.b lacks qzeros"):
        load(tmp_path / "m", config, parts)
    parts["a.b.qzeros"] = torch.zeros(4, OUT // 8, dtype=torch.int32)
    with pytest.raises(ModelError, match=r"layer a\.b lacks g_idx, which desc_act needs"):
        load(tmp_path / "m", config, parts)


@pytest.mark.parametrize("scale", [(5, 5), (OUT, 7), (3,)])
def test_scales_that_do_not_fit_are_named(tmp_path, scale):
    tensors = {"a.weight": torch.zeros(OUT, IN, dtype=torch.int8), "a.weight_scale": torch.ones(scale)}
    with pytest.raises(ModelError, match=r"a: scales of shape .* don't fit a weight of \[16, 64\]"):
        load(tmp_path / "m", compressed("int-quantized"), tensors)
