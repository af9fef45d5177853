"""Weights from safetensors files, memory-mapped, one or many shards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from plugserve.core.errors import ModelError, one_line
from plugserve.core.model_files.checkpoint_folder import check_folder

if TYPE_CHECKING:
    import torch


def iterate_safetensors(folder: Path, *, show_progress: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of every shard in folder. Checks config, index and shards' headers before it returns."""
    return _read_shards(check_folder(folder), show_progress)


def _read_shards(paths: list[Path], show_progress: bool) -> Iterator[tuple[str, torch.Tensor]]:
    bar = tqdm(
        paths, desc="Loading safetensors checkpoint shards", unit="shard", disable=not show_progress, file=sys.stderr
    )
    for path in bar:
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - safe_open is no mapping
                yield name, read_tensor(path, shard, name)


def read_tensor(path: Path, shard: Any, name: str) -> torch.Tensor:
    """One tensor of an open file; path is for the error."""
    try:
        tensor: torch.Tensor = shard.get_tensor(name)
    except (SafetensorError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{path}: tensor {name!r} can't be read: {one_line(error)}") from None
    return tensor
