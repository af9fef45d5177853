import struct

import gguf
import numpy as np
import pytest

from plugserve.core.errors import ModelError
from plugserve.core.model_files.gguf_file import is_gguf, read_gguf
from plugserve.core.model_files.gguf_types import GGML_TYPES
from tests.core.model_files.gguf_samples import write_gguf


def header(*, version=3, num_tensors=0, num_entries=0, rest=b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_entries) + rest


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def entry(key: str, value_type: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", value_type) + value


def test_every_value_type_is_read_as_it_was_written(tmp_path):
    def fill(writer):
        writer.add_uint8("u8", 255)
        writer.add_int8("i8", -1)
        writer.add_uint16("u16", 65535)
        writer.add_int16("i16", -2)
        writer.add_uint32("u32", 2**32 - 1)
        writer.add_int32("i32", -3)
        writer.add_float32("f32", 1.5)
        writer.add_uint64("u64", 2**64 - 1)
        writer.add_int64("i64", -4)
        writer.add_float64("f64", 0.1)
        writer.add_bool("yes", True)
        writer.add_string("text", "naïve 日本")
        writer.add_array("ints", [1, 2, 3])
        writer.add_array("texts", ["a", "", "é"])

    file = read_gguf(write_gguf(tmp_path / "m.gguf", fill))
    expected = {
        **{"u8": 255, "i8": -1, "u16": 65535, "i16": -2, "u32": 2**32 - 1, "i32": -3, "f32": 1.5},
        **{"u64": 2**64 - 1, "i64": -4, "f64": 0.1, "yes": True, "text": "naïve 日本"},
        **{"ints": [1, 2, 3], "texts": ["a", "", "é"], "general.architecture": "llama"},
    }
    assert file.metadata == expected
    assert file.architecture == "llama"
    assert file.array("texts") == ["a", "", "é"]
    assert file.array("absent") == []


def test_long_arrays_are_read_on_demand(tmp_path):
    words, numbers = [f"w{i}é" for i in range(5000)], list(range(5000))

    def fill(writer):
        writer.add_array("words", words)
        writer.add_array("numbers", numbers)
        writer.add_uint32("after", 7)

    file = read_gguf(write_gguf(tmp_path / "m.gguf", fill))
    assert "words" not in file.metadata
    assert file.metadata["after"] == 7
    assert file.array("words") == words
    assert file.array("numbers") == numbers
    assert file.array_length("words") == 5000


def test_tensor_table_agrees_with_the_gguf_package(tmp_path):
    def fill(writer):
        writer.add_tensor("matrix", np.arange(64 * 32, dtype=np.float32).reshape(64, 32))
        writer.add_tensor("vector", np.ones(5, dtype=np.float16))
        rows = gguf.quants.quantize(np.ones((3, 256), np.float32), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor("quantised", rows, raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    path = write_gguf(tmp_path / "m.gguf", fill)
    file, oracle = read_gguf(path), gguf.GGUFReader(path)
    assert list(file.tensors) == [tensor.name for tensor in oracle.tensors]
    for tensor in oracle.tensors:
        ours = file.tensors[tensor.name]
        assert ours.shape == tuple(int(size) for size in reversed(tensor.shape))
        assert (ours.ggml_type, ours.offset, ours.num_bytes) == (
            int(tensor.tensor_type),
            int(tensor.data_offset),
            int(tensor.n_bytes),
        )
    assert file.tensors["quantised"].type_name == "Q8_0"


def test_the_default_model_reads_as_the_gguf_package_reads_it(smollm2_gguf):
    file, oracle = read_gguf(smollm2_gguf), gguf.GGUFReader(smollm2_gguf)
    assert file.version == 3
    assert file.data_offset == oracle.data_offset
    for key in ("general.name", "llama.rope.freq_base", "llama.attention.head_count_kv", "tokenizer.chat_template"):
        assert file.metadata[key] == oracle.fields[key].contents()
    tokens = file.array("tokenizer.ggml.tokens")
    assert len(tokens) == 49152
    field = oracle.fields["tokenizer.ggml.tokens"]
    assert [tokens[i] for i in range(0, 49152, 997)] == [field.contents(i) for i in range(0, 49152, 997)]
    assert {t.name: (int(t.data_offset), int(t.n_bytes)) for t in oracle.tensors} == {
        t.name: (t.offset, t.num_bytes) for t in file.tensors.values()
    }


def test_block_sizes_agree_with_the_gguf_package():
    for number, (name, elements, num_bytes) in GGML_TYPES.items():
        if number in set(gguf.GGMLQuantizationType):
            known = gguf.GGMLQuantizationType(number)
            assert (known.name, *gguf.GGML_QUANT_SIZES[known]) == (name, elements, num_bytes)


def test_a_file_cut_off_anywhere_is_one_clear_error(tmp_path):
    def fill(writer):
        writer.add_array("words", [f"word{i}" for i in range(300)])
        writer.add_array("few", [1.0, 2.0])
        writer.add_tensor("a", np.zeros((4, 32), np.float32))
        writer.add_tensor("b", np.zeros(32, np.float16))

    whole = write_gguf(tmp_path / "m.gguf", fill).read_bytes()
    cut = tmp_path / "cut.gguf"
    last = read_gguf(tmp_path / "m.gguf").tensors["b"]
    for length in [*range(0, 200), *range(200, last.offset + last.num_bytes, 37)]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelError) as caught:
            read_gguf(cut)
        assert "\n" not in str(caught.value)
        assert "cut.gguf" in str(caught.value)


def test_the_default_model_cut_off_is_refused(smollm2_gguf, tmp_path):
    cut = tmp_path / "cut.gguf"
    with smollm2_gguf.open("rb") as file:
        start = file.read(2_000_000)
    for length in (1_000, 500_000, 1_500_000, 1_785_663, 2_000_000):
        cut.write_bytes(start[:length])
        with pytest.raises(ModelError, match=r"cut off|can't fit"):
            read_gguf(cut)


def test_noise_in_any_header_byte_never_raises_anything_else(tmp_path):
    def fill(writer):
        writer.add_array("words", ["a", "bc"] * 200)
        writer.add_string("text", "x")
        writer.add_tensor("a", np.zeros((4, 32), np.float32))

    whole = write_gguf(tmp_path / "m.gguf", fill).read_bytes()
    noisy = tmp_path / "noisy.gguf"
    outcomes, messages = set(), []
    for position in [*range(4, 140), *range(140, len(whole) - 512, 61)]:
        for value in (0x00, 0x7F, 0xFF):
            noisy.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
            try:
                read_gguf(noisy)
                outcomes.add("read")
            except ModelError as error:
                messages.append(str(error))
                outcomes.add("refused")
    assert outcomes == {"read", "refused"}
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"PK\x03\x04 something else", "doesn't start with 'GGUF'"),
        (b"GG", "doesn't start with 'GGUF'"),
        (header(version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (header(num_tensors=2**60), "tensors can't fit"),
        (header(num_entries=2**63), "metadata entries can't fit"),
        (header(num_entries=1, rest=entry("k", 9, struct.pack("<IQ", 8, 2**62))), "can't fit"),
        (header(num_entries=1, rest=entry("k", 9, struct.pack("<IQ", 6, 2**61))), "can't fit"),
        (header(num_entries=1, rest=struct.pack("<Q", 2**63) + b"k" * 20), "cut off or corrupt"),
        (header(num_entries=1, rest=entry("k", 99, b"12345678")), "unknown value type 99"),
        (header(num_entries=1, rest=entry("k", 8, struct.pack("<Q", 2) + b"\xff\xfe")), "not UTF-8"),
        (header(num_entries=2, rest=entry("k", 4, b"1234") * 2), "given twice"),
        (header(num_entries=1, rest=entry("split.count", 2, struct.pack("<H", 3))), "split into 3 files"),
        (header(num_entries=1, rest=entry("general.alignment", 4, struct.pack("<I", 0))), "power of two"),
        (header(num_tensors=1, rest=string("t") + struct.pack("<I", 4_000_000) + b"0" * 64), "dimensions"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, content, message):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_gguf(path)


def test_nested_arrays_end_somewhere(tmp_path):
    path = tmp_path / "deep.gguf"
    path.write_bytes(header(num_entries=1, rest=entry("k", 9, struct.pack("<IQ", 9, 1) * 10_000)))
    with pytest.raises(ModelError, match="unknown value type"):
        read_gguf(path)


def test_a_changed_file_is_read_again(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", lambda writer: writer.add_uint32("n", 1))
    assert read_gguf(path).metadata["n"] == 1
    write_gguf(path, lambda writer: writer.add_array("n", [2, 3]))
    assert read_gguf(path).metadata["n"] == [2, 3]


def test_other_files_are_told_apart(tmp_path, smollm2_gguf):
    (tmp_path / "x").write_bytes(b"hello")
    assert is_gguf(smollm2_gguf)
    assert not is_gguf(tmp_path / "x")
    assert not is_gguf(tmp_path)
    assert not is_gguf(tmp_path / "absent")
