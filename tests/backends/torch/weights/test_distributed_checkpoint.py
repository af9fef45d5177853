"""--load-format dtensor: folders that torch.distributed.checkpoint wrote, also by several processes."""

import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp

from plugserve.backends.torch.weights import iterate_weights
from plugserve.backends.torch.weights.distributed_checkpoint import iterate_distributed
from plugserve.core.errors import ModelError
from plugserve.core.model_files.model_source import resolve

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 33, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False, "max_position_embeddings": 64,
}  # fmt: skip
SAVE_SHARDS = """
import sys, torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
folder, store, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
tensors = torch.load(folder + "/whole.pt", weights_only=True)
placed = {}
for index, (name, tensor) in enumerate(tensors.items()):
    place = Replicate() if tensor.ndim == 1 else Shard(index % 2)
    placed[name] = distribute_tensor(tensor, mesh, [place])
dcp.save({"model": placed}, checkpoint_id=folder)
dist.destroy_process_group()
"""


def tensors_of_model(dtype=torch.bfloat16):
    from plugserve.backends.torch.models.make_model import parameter_shapes

    torch.manual_seed(0)
    return {name: torch.randn(shape).to(dtype) for name, shape in parameter_shapes(CONFIG).items()}


def save(folder, state):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


def load(folder, load_format="dtensor"):
    source = resolve(str(folder), load_format=load_format)
    return dict(iterate_weights(source, load_format=load_format, show_progress=False))


def assert_same(loaded, expected):
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize(
    "nest",
    [
        lambda tensors: tensors,
        lambda tensors: {"model": tensors, "optimizer": {"state": [torch.ones(3)]}, "step": 7},
        lambda tensors: {"app": {"model": tensors, "optim": {"model.norm.weight": torch.ones(3)}}},
    ],
)
def test_a_checkpoint_is_read_as_it_was_saved(tmp_path, nest):
    expected = tensors_of_model()
    folder = save(tmp_path / "m", nest(expected))
    assert_same(load(folder), expected)
    assert_same(load(folder, "auto"), expected)


def test_shards_of_two_processes_are_joined_without_a_process_group(tmp_path):
    expected = tensors_of_model(torch.float32)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps(CONFIG))
    torch.save(expected, tmp_path / "m" / "whole.pt")
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SAVE_SHARDS, tmp_path / "m", tmp_path / "store", str(rank)], env=environ
        )
        for rank in range(2)
    ]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    assert len(list((tmp_path / "m").glob("*.distcp"))) == 2
    assert_same(load(tmp_path / "m"), expected)
    assert not torch.distributed.is_initialized()


def test_a_description_with_code_is_refused_and_not_run(tmp_path):
    folder = save(tmp_path / "m", tensors_of_model())

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (folder / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ModelError, match=r"\.metadata is damaged or holds code, and is not loaded: .*mkdir") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_missing_description_is_named(tmp_path):
    folder = save(tmp_path / "m", tensors_of_model())
    (folder / ".metadata").unlink()
    with pytest.raises(ModelError, match=r"\.metadata is missing: .*not complete"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 1, 40, 300])
def test_a_truncated_description_is_named(tmp_path, keep):
    folder = save(tmp_path / "m", tensors_of_model())
    (folder / ".metadata").write_bytes((folder / ".metadata").read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"\.metadata is (truncated|damaged)"):
        load(folder)


def test_a_missing_and_a_truncated_file_are_named(tmp_path):
    folder = save(tmp_path / "m", tensors_of_model())
    (file,) = folder.glob("*.distcp")
    data = file.read_bytes()
    file.write_bytes(data[:-10])
    with pytest.raises(ModelError, match=rf"{file.name} is truncated: .*{len(data)} bytes, it has {len(data) - 10}"):
        load(folder)
    file.rename(folder / "other.distcp")
    with pytest.raises(ModelError, match=rf"{file.name} is missing: \.metadata names it as one of 1 files"):
        load(folder)


def test_a_damaged_tensor_is_named(tmp_path):
    folder = save(tmp_path / "m", tensors_of_model())
    (file,) = folder.glob("*.distcp")
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(ModelError, match=r"m: tensor '.*' can't be read: "):
        load(folder)


def test_a_file_outside_the_folder_is_refused(tmp_path):
    folder = save(tmp_path / "m", tensors_of_model())
    (folder / ".metadata").write_bytes(
        (folder / ".metadata").read_bytes().replace(b"__0_0.distcp", b"../../../etc")  # of the same length
    )
    with pytest.raises(ModelError, match=r"names '\.\./\.\./\.\./etc', which is not a file of its folder"):
        iterate_distributed(folder, ())
