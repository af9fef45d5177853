"""Weights from safetensors files, memory-mapped, one or many shards. Knows nothing of models or devices."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from plugserve.core.errors import ModelError
from plugserve.core.weights.shards import read_index, refuse_missing

if TYPE_CHECKING:
    import torch

_INDEX = "model.safetensors.index.json"


def iterate_safetensors(folder: Path, *, show_progress: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of every shard in folder. Checks index and shards' headers before it returns."""
    shards = _find_shards(folder)
    for path, names in shards.items():
        _check_shard(path, names)
    return _read_shards(list(shards), show_progress)


def _find_shards(folder: Path) -> dict[Path, set[str]]:
    """Shard: the tensors that the index expects in it (none without an index)."""
    index = folder / _INDEX
    if not index.is_file():
        others = sorted(folder.glob("*.safetensors.index.json"))
        index = others[0] if others else index
    if index.is_file():
        return read_index(index)
    single = folder / "model.safetensors"
    if single.is_file():
        return {single: set()}
    paths = [path for path in sorted(folder.glob("*.safetensors")) if not path.name.startswith("consolidated")]
    if not paths:
        raise ModelError(f"{folder} holds no *.safetensors weights")
    return {path: set() for path in paths}


def _check_shard(path: Path, expected: set[str]) -> None:
    """Open the shard once, so that a broken download shows before minutes of loading."""
    try:
        with safe_open(path, framework="pt") as shard:
            missing = expected.difference(shard.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a readable safetensors file: {_one_line(error)}") from None
    refuse_missing(path, missing)


def _read_shards(paths: list[Path], show_progress: bool) -> Iterator[tuple[str, torch.Tensor]]:
    bar = tqdm(
        paths, desc="Loading safetensors checkpoint shards", unit="shard", disable=not show_progress, file=sys.stderr
    )
    for path in bar:
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - safe_open is no mapping
                yield name, _read_tensor(path, shard, name)


def _read_tensor(path: Path, shard: Any, name: str) -> torch.Tensor:
    try:
        tensor: torch.Tensor = shard.get_tensor(name)
    except (SafetensorError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{path}: tensor {name!r} can't be read: {_one_line(error)}") from None
    return tensor


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
