import functools
import json
import threading
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as GT
from safetensors.torch import save_file

from plugserve.backends.torch.torch_backend import plugserve_weight_formats
from plugserve.backends.torch.weights import dummy_tensor, iterate_weights
from plugserve.backends.torch.weights.gguf_blocks import SUPPORTED_TYPES, dequantize
from plugserve.backends.torch.weights.gguf_tensors import hugging_face_name, split_rope_halves
from plugserve.core.contracts.factories import WeightFormatContext
from plugserve.core.errors import ConfigError, ModelError
from plugserve.core.model_files.gguf_file import GgufTensor, read_gguf
from plugserve.core.model_files.model_source import read_config, resolve
from plugserve.core.settings.settings import Settings
from tests.core.model_files.gguf_samples import add_llama_shape, add_llama_tensors, write_gguf


def load(path) -> dict[str, torch.Tensor]:
    return dict(iterate_weights(resolve(str(path)), show_progress=False))


# ---------------------------------------------------------------- blocks


def random_blocks(name: str, num_blocks: int) -> np.ndarray:
    """Random bytes whose float16 scales are ordinary numbers, as uint8 [num_blocks, block_bytes]."""
    rng = np.random.default_rng(1)
    _, block_bytes = gguf.GGML_QUANT_SIZES[GT[name]]
    blocks = rng.integers(0, 256, (num_blocks, block_bytes), dtype=np.uint8)
    scales = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(name, (0,))
    for start in scales:
        values = rng.uniform(-2, 2, num_blocks).astype(np.float16)
        blocks[:, start : start + 2] = values.view(np.uint8).reshape(num_blocks, 2)
    return blocks


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"])
def test_blocks_dequantise_bit_for_bit_as_the_gguf_package_does(name):
    """More blocks than one chunk, so that chunks' borders are covered."""
    elements, _ = gguf.GGML_QUANT_SIZES[GT[name]]
    num_blocks = (1 << 17) // elements * 2 + 7
    blocks = random_blocks(name, num_blocks)
    ours = dequantize(blocks.reshape(-1), name, (num_blocks, elements))
    theirs = gguf.quants.dequantize(blocks, GT[name])
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_what_the_gguf_package_quantises_comes_back(name):
    values = np.random.default_rng(0).standard_normal((6, 64), dtype=np.float32)
    stored = gguf.quants.quantize(values, GT[name])
    expected = gguf.quants.dequantize(stored, GT[name])
    ours = dequantize(np.ascontiguousarray(stored).view(np.uint8).reshape(-1), name, values.shape)
    np.testing.assert_array_equal(ours, expected)
    tolerance = {"F32": 0, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 2e-2, "Q5_0": 0.2, "Q5_1": 0.15}.get(name, 0.4)
    assert np.abs(ours - values).max() <= tolerance


def test_q8_k_blocks_are_a_scale_and_256_bytes():
    rng = np.random.default_rng(2)
    scales = rng.standard_normal(3).astype(np.float32)
    quants = rng.integers(-128, 128, (3, 256), dtype=np.int8)
    sums = quants.reshape(3, 16, 16).sum(axis=2).astype(np.int16)
    data = b"".join(d.tobytes() + q.tobytes() + s.tobytes() for d, q, s in zip(scales, quants, sums, strict=True))
    ours = dequantize(np.frombuffer(data, np.uint8), "Q8_K", (1, 768))
    np.testing.assert_array_equal(ours, (scales[:, None] * quants).reshape(1, 768))


def test_an_empty_tensor_has_no_blocks():
    assert dequantize(np.empty(0, np.uint8), "Q8_0", (0, 32)).shape == (0, 32)


def test_rope_pairs_become_halves():
    """Undoes the converter's interleaving: [heads, 2, half] stored as [heads, half, 2]."""
    original = np.arange(2 * 8 * 3, dtype=np.float32).reshape(16, 3)
    stored = original.reshape(2, 2, 4, 3).swapaxes(1, 2).reshape(16, 3)
    np.testing.assert_array_equal(split_rope_halves(stored, 2), original)
    with pytest.raises(ModelError, match="16 rows"):
        split_rope_halves(stored, 3)


# ---------------------------------------------------------------- GGUF files


def tiny(path, extra=lambda writer: None, **options):
    tensors = {}

    def fill(writer):
        add_llama_shape(writer)
        tensors.update(add_llama_tensors(writer))
        extra(writer)

    write_gguf(path, fill, **options)
    return tensors


def test_tensors_get_their_hugging_face_names_and_shapes(tmp_path):
    stored = tiny(tmp_path / "m.gguf")
    loaded = load(tmp_path / "m.gguf")
    at = "model.layers.0."
    assert set(loaded) == {
        *("model.embed_tokens.weight", "model.norm.weight"),
        *(at + "input_layernorm.weight", at + "post_attention_layernorm.weight"),
        *(f"{at}self_attn.{kind}_proj.weight" for kind in "qkvo"),
        *(f"{at}mlp.{kind}_proj.weight" for kind in ("gate", "up", "down")),
    }
    assert all(tensor.dtype == torch.float32 for tensor in loaded.values())
    down, k = loaded[at + "mlp.down_proj.weight"], loaded[at + "self_attn.k_proj.weight"]
    np.testing.assert_array_equal(down.numpy(), stored["blk.0.ffn_down.weight"])
    np.testing.assert_array_equal(k.numpy(), split_rope_halves(stored["blk.0.attn_k.weight"], 2))
    np.testing.assert_array_equal(
        loaded[at + "self_attn.q_proj.weight"].numpy(), split_rope_halves(stored["blk.0.attn_q.weight"], 4)
    )


def test_loaded_tensors_are_writable_and_the_consumers_own(tmp_path):
    tiny(tmp_path / "m.gguf")
    first = load(tmp_path / "m.gguf")
    for tensor in first.values():
        tensor.zero_()
    assert load(tmp_path / "m.gguf")["model.embed_tokens.weight"].abs().sum() > 0


def test_rope_factors_output_and_biases_are_visible(tmp_path):
    def extra(writer):
        writer.add_tensor("rope_freqs.weight", np.arange(1, 9, dtype=np.float32))
        writer.add_tensor("output.weight", np.ones((32, 64), np.float16))
        writer.add_tensor("blk.0.attn_q.bias", np.arange(64, dtype=np.float32))

    tiny(tmp_path / "m.gguf", extra)
    loaded = load(tmp_path / "m.gguf")
    assert loaded["rope_freqs.weight"].tolist() == list(range(1, 9))
    assert loaded["lm_head.weight"].dtype == torch.float32
    bias = loaded["model.layers.0.self_attn.q_proj.bias"]
    assert bias[:3].tolist() == [0, 2, 4]
    assert bias[8:10].tolist() == [1, 3]


def test_an_unread_type_is_refused_by_name_before_anything_loads(tmp_path):
    def extra(writer):
        for number, kind in enumerate((GT.IQ2_XXS, GT.Q2_K, GT.TQ1_0, GT.MXFP4)):
            _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            blocks = 256 // gguf.GGML_QUANT_SIZES[kind][0]
            raw = np.zeros((1, blocks * block_bytes), np.uint8)
            writer.add_tensor(f"blk.{number}.ffn_up.weight2", raw, raw_dtype=kind)

    tiny(tmp_path / "m.gguf", extra)
    with pytest.raises(ModelError) as caught:
        iterate_weights(resolve(str(tmp_path / "m.gguf")), show_progress=False)
    message = str(caught.value)
    assert "\n" not in message
    for name in ("IQ2_XXS", "Q2_K", "TQ1_0", "MXFP4", "blk.0.ffn_up.weight2"):
        assert name in message
    assert message.endswith("supported types: " + ", ".join(SUPPORTED_TYPES))


def test_the_supported_types_are_those_that_were_promised():
    promised = "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q5_K Q6_K Q8_K IQ4_NL"
    assert set(SUPPORTED_TYPES) == set(promised.split())


def test_an_unknown_type_number_is_refused_by_number():
    assert GgufTensor("t", (1,), 77, 0, 0).type_name == "type 77"


def test_a_stray_tensor_is_refused(tmp_path):
    tiny(tmp_path / "m.gguf", lambda writer: writer.add_tensor("blk.0.ssm_in.weight", np.zeros(32, np.float32)))
    with pytest.raises(ModelError, match=r"'blk\.0\.ssm_in\.weight' is not one that a 'llama' model"):
        iterate_weights(resolve(str(tmp_path / "m.gguf")))


def test_tensors_that_repeat_metadata_are_passed_over(tmp_path):
    write_gguf(tmp_path / "m.gguf", lambda writer: None)
    file = read_gguf(tmp_path / "m.gguf")
    assert hugging_face_name(file, "blk.3.attn_rot_embd") is None
    assert hugging_face_name(file, "blk.12.ffn_norm.weight") == "model.layers.12.post_attention_layernorm.weight"


def test_breaking_off_leaves_no_thread_behind(tmp_path):
    tiny(tmp_path / "m.gguf")
    before = set(threading.enumerate())
    weights = iterate_weights(resolve(str(tmp_path / "m.gguf")), show_progress=False)
    next(weights)
    weights.close()
    assert set(threading.enumerate()) == before


def test_progress_bar_goes_to_stderr(tmp_path, capfd):
    tiny(tmp_path / "m.gguf")
    dict(iterate_weights(resolve(str(tmp_path / "m.gguf"))))
    out, err = capfd.readouterr()
    assert out == ""
    assert "Loading m.gguf" in err
    assert "100%" in err


def without_vocabulary(path, copy):
    """The file at path again, all but its long arrays, over which transformers' reader takes many seconds."""
    file = read_gguf(path)
    data = np.memmap(path, np.uint8, "r")

    def fill(writer):
        for key, value in file.metadata.items():
            if key.startswith("llama."):
                writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
        for tensor in file.tensors.values():
            raw = data[tensor.offset : tensor.offset + tensor.num_bytes].reshape(*tensor.shape[:-1], -1)
            if tensor.type_name == "F32":
                raw = raw.view(np.float32)
            writer.add_tensor(tensor.name, raw, raw_dtype=GT(tensor.ggml_type))

    return write_gguf(copy, fill)


def test_default_model_loads_as_transformers_loads_it(smollm2_gguf, tmp_path, monkeypatch):
    """Tensor by tensor, bit for bit. transformers asks for the same name map 397 times; once is enough."""
    monkeypatch.setattr(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map))
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    source = resolve(None)
    with torch.device("meta"):
        empty = LlamaForCausalLM(LlamaConfig(**read_config(source)))
    copy = without_vocabulary(smollm2_gguf, tmp_path / "copy.gguf")
    theirs = load_gguf_checkpoint(str(copy), return_tensors=True, model_to_load=empty, torch_dtype=torch.float32)
    tensors = theirs["tensors"]
    count = 0
    for name, tensor in iterate_weights(source, show_progress=False):
        assert torch.equal(tensor, tensors[name]), name
        count += 1
    assert count == len(tensors) == 272


# ---------------------------------------------------------------- safetensors


def make_folder(folder, config=None):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    return folder


def make_sharded(folder):
    make_folder(folder)
    parts = {"model-00001-of-00002.safetensors": ("a", "b"), "model-00002-of-00002.safetensors": ("c",)}
    tensors = {name: torch.randn(3, 4).to(torch.bfloat16) for name in "abc"}
    for shard, names in parts.items():
        save_file({name: tensors[name] for name in names}, folder / shard)
    weight_map = {name: shard for shard, names in parts.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tensors


def test_a_single_file_is_read_as_stored(tmp_path):
    folder = make_folder(tmp_path / "m")
    tensors = {"x": torch.randn(2, 3), "y": torch.arange(4).to(torch.float16)}
    save_file(tensors, folder / "model.safetensors")
    loaded = load(folder)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert loaded["y"].dtype == torch.float16


def test_shards_are_read_with_a_bar(tmp_path, capfd):
    tensors = make_sharded(tmp_path / "m")
    loaded = dict(iterate_weights(resolve(str(tmp_path / "m"))))
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    _, err = capfd.readouterr()
    assert "Loading safetensors checkpoint shards" in err
    assert "2/2" in err


def test_a_missing_shard_is_named(tmp_path):
    make_sharded(tmp_path / "m")
    (tmp_path / "m" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00002.safetensors is missing: .*one of 2 shards"):
        iterate_weights(resolve(str(tmp_path / "m")))


def test_a_tensor_that_the_index_promises_is_missed(tmp_path):
    make_sharded(tmp_path / "m")
    save_file({"other": torch.zeros(1)}, tmp_path / "m" / "model-00002-of-00002.safetensors")
    with pytest.raises(ModelError, match=r"00002.safetensors lacks 1 tensors .* first is 'c'"):
        iterate_weights(resolve(str(tmp_path / "m")))


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{not js}", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}extra"])
def test_a_corrupt_file_is_named(tmp_path, content):
    folder = make_folder(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model.safetensors is not a readable safetensors file") as caught:
        iterate_weights(resolve(str(folder)))
    assert "\n" not in str(caught.value)


def test_a_file_cut_off_is_named(tmp_path):
    folder = make_folder(tmp_path / "m")
    save_file({"x": torch.zeros(1000)}, folder / "model.safetensors")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(
        ModelError,
        match=f"not a readable safetensors file: it is truncated, its header describes {len(whole)} bytes, "
        f"it has {len(whole) - 100}",
    ):
        iterate_weights(resolve(str(folder)))


def test_an_unknown_dtype_is_named(tmp_path):
    folder = make_folder(tmp_path / "m")
    header = json.dumps({"x": {"dtype": "Z9", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(ModelError, match=r"model.safetensors.*Z9"):
        load(folder)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {}}'])
def test_a_broken_index_is_named(tmp_path, content):
    make_sharded(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=r"index\.json (is not|lists no)"):
        iterate_weights(resolve(str(tmp_path / "m")))


def test_an_index_cannot_reach_outside_its_folder(tmp_path):
    make_sharded(tmp_path / "m")
    save_file({"a": torch.zeros(1)}, tmp_path / "outside.safetensors")
    weight_map = {"weight_map": {"a": "../outside.safetensors"}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(weight_map))
    with pytest.raises(ModelError, match=r"outside\.safetensors is missing"):
        iterate_weights(resolve(str(tmp_path / "m")))


@pytest.mark.parametrize("load_format", ["sharded", "safetensor"])
def test_an_unknown_format_is_named_in_the_error(tmp_path, load_format):
    tiny(tmp_path / "m.gguf")
    with pytest.raises(ConfigError, match=f"--load-format {load_format} is not known; known are auto, safetensors, "):
        iterate_weights(resolve(str(tmp_path / "m.gguf")), load_format=load_format)


def test_load_format_must_fit_the_files(tmp_path):
    tiny(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match=r"--load-format safetensors does not fit .*m\.gguf: no \*\.safetensors"):
        iterate_weights(resolve(str(tmp_path / "m.gguf")), load_format="safetensors")
    assert (
        load(tmp_path / "m.gguf").keys()
        == dict(iterate_weights(resolve(str(tmp_path / "m.gguf")), load_format="gguf", show_progress=False)).keys()
    )


# ---------------------------------------------------------------- torch files


def same(loaded, tensors):
    return loaded.keys() == tensors.keys() and all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "weights.pth"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_torch_file_is_read_as_stored(tmp_path, file, is_zip):
    folder = make_folder(tmp_path / "m")
    tensors = {"x": torch.randn(2, 3), "y": torch.arange(4).to(torch.bfloat16)}
    torch.save(tensors, folder / file, _use_new_zipfile_serialization=is_zip)
    torch.save({"lr": 1}, folder / "optimizer.pt")
    assert same(load(folder), tensors)


def test_torch_shards_are_read_by_their_index(tmp_path, capfd):
    folder = make_folder(tmp_path / "m")
    tensors = {name: torch.randn(3) for name in "abc"}
    torch.save({"a": tensors["a"], "b": tensors["b"]}, folder / "pytorch_model-1.bin")
    torch.save({"c": tensors["c"]}, folder / "pytorch_model-2.bin")
    weight_map = {"a": "pytorch_model-1.bin", "b": "pytorch_model-1.bin", "c": "pytorch_model-2.bin"}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert same(dict(iterate_weights(resolve(str(folder)))), tensors)
    assert "2/2" in capfd.readouterr().err
    torch.save({"d": tensors["c"]}, folder / "pytorch_model-2.bin")
    with pytest.raises(ModelError, match=r"model-2.bin lacks 1 tensors .* first is 'c'"):
        load(folder)


class Runs:
    def __reduce__(self):
        return (print, ("code of the file ran",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": Runs()}, "pytorch_model.bin holds more than tensors, or is damaged, and is not loaded"),
        ({"x": 3}, "is not a mapping of names to tensors"),
        ([torch.zeros(1)], "is not a mapping of names to tensors"),
        (b"PK but not a zip", "pytorch_model.bin is truncated, or no torch file"),
        (b"", "pytorch_model.bin"),
    ],
)
def test_a_torch_file_with_anything_else_is_refused(tmp_path, content, message, capfd):
    folder = make_folder(tmp_path / "m")
    path = folder / "pytorch_model.bin"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ModelError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert "code of the file ran" not in capfd.readouterr().out


def test_safetensors_win_over_torch_files_unless_those_are_named(tmp_path):
    folder = make_folder(tmp_path / "m")
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    torch.save({"x": torch.ones(1)}, folder / "pytorch_model.bin")
    assert load(folder)["x"].item() == 0
    assert dict(iterate_weights(resolve(str(folder)), load_format="pt", show_progress=False))["x"].item() == 1


# ---------------------------------------------------------------- dummy


def test_dummy_tensors_depend_on_name_and_seed_alone():
    one = dummy_tensor("a.weight", (8, 16), torch.float32, seed=1)
    assert torch.equal(one, dummy_tensor("a.weight", (8, 16), torch.float32, seed=1))
    assert not torch.equal(one, dummy_tensor("b.weight", (8, 16), torch.float32, seed=1))
    assert not torch.equal(one, dummy_tensor("a.weight", (8, 16), torch.float32, seed=2))
    assert dummy_tensor("a.weight", (8, 16), torch.bfloat16).dtype == torch.bfloat16


def test_dummy_tensors_are_scaled_by_what_they_are():
    matrix = dummy_tensor("q_proj.weight", (256, 1024), torch.float32)
    assert abs(float(matrix.std()) * 32 - 1) < 0.05
    assert abs(float(dummy_tensor("input_layernorm.weight", (1024,), torch.float32).mean()) - 1) < 0.01
    assert float(dummy_tensor("q_proj.bias", (1024,), torch.float32).abs().max()) < 0.2


def test_dummy_weights_follow_the_seed_setting():
    source = SimpleNamespace(shapes=lambda: {"a.weight": (4, 4)})

    def weights(**settings):
        context = WeightFormatContext(options=None, config=Settings(**settings).view())
        return dict(plugserve_weight_formats()["dummy"](context).open(source))["a.weight"]

    assert torch.equal(weights(seed=5), weights(seed=5))
    assert not torch.equal(weights(seed=5), weights(seed=6))
    assert torch.equal(weights(), weights(seed=0))
