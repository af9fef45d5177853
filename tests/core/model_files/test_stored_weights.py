"""Sizes and types of stored weights come from headers alone."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from plugserve.core.contracts.weights import ModelSource
from plugserve.core.errors import ModelError
from plugserve.core.model_files.stored_weights import NO_WEIGHTS, stored_weights


def source(path, kind="folder"):
    return ModelSource("m", (), kind, path)


def test_safetensors_shards_are_summed_by_type(tmp_path):
    save_file({"a": np.zeros((4, 8), np.float16), "b": np.zeros(8, np.float32)}, tmp_path / "model-1.safetensors")
    save_file({"c": np.zeros((100, 8), np.float16)}, tmp_path / "model-2.safetensors")
    found = stored_weights(source(tmp_path))
    assert (found.num_files, found.num_bytes, found.largest_file_bytes) == (2, 64 + 32 + 1600, 1600)
    assert found.bytes_by_type == {"F16": 1664, "F32": 32}
    assert str(found) == "2 KiB as F16, F32"


def test_only_the_header_is_read(tmp_path):
    header = json.dumps({"a": {"dtype": "BF16", "shape": [1 << 30], "data_offsets": [0, 1 << 31]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)  # no data behind it
    assert str(stored_weights(source(tmp_path))) == "2.00 GiB as BF16"


def test_gguf_types(smollm2_gguf):
    found = stored_weights(source(smollm2_gguf, "gguf"))
    assert found.num_files == 1
    assert next(iter(found.bytes_by_type)) == "Q4_1"
    assert 0.9 * smollm2_gguf.stat().st_size < found.num_bytes < smollm2_gguf.stat().st_size


def test_torch_files_have_a_size_alone(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 2048)
    assert str(stored_weights(source(tmp_path))) == "2 KiB"


def test_folder_without_weights(tmp_path):
    assert stored_weights(source(tmp_path)) is NO_WEIGHTS


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, struct.pack("<Q", 4) + b"nope", struct.pack("<Q", 2) + b"[]"])
def test_broken_header_is_one_line(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="header can't be read"):
        stored_weights(source(tmp_path))
