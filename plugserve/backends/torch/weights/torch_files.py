"""Weights that torch.save wrote (*.bin, *.pt, *.pth), one or many files.

Files are read with weights_only: tensors and plain containers, never code.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from plugserve.core.errors import ModelError
from plugserve.core.model_files.checkpoint_folder import read_index, refuse_missing

if TYPE_CHECKING:
    import torch

_SINGLE = ("pytorch_model.bin", "model.pt", "model.pth")
_NESTED = ("model", "state_dict", "model_state_dict")
_ZIP_END = b"PK\x05\x06"  # begins a zip file's last record, at most 64 KiB before its end
_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "consolidated")


def iterate_torch_files(folder: Path, *, show_progress: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of every shard in folder. Checks index and files' presence before it returns."""
    return _read_shards(_find_shards(folder), show_progress)


def _find_shards(folder: Path) -> dict[Path, set[str]]:
    for index in sorted(folder.glob("*.bin.index.json")):
        return read_index(index)
    for name in _SINGLE:
        if (folder / name).is_file():
            return {folder / name: set()}
    paths = [path for pattern in ("*.bin", "*.pt", "*.pth") for path in sorted(folder.glob(pattern))]
    paths = [path for path in paths if not path.name.startswith(_NO_WEIGHTS)]
    if not paths:
        raise ModelError(f"{folder} holds no *.bin, *.pt or *.pth weights")
    return {path: set() for path in paths}


def _read_shards(shards: dict[Path, set[str]], show_progress: bool) -> Iterator[tuple[str, torch.Tensor]]:
    bar = tqdm(
        shards.items(),
        desc="Loading torch checkpoint shards",
        unit="shard",
        disable=not show_progress,
        file=sys.stderr,
    )
    for path, expected in bar:
        tensors = _load(path)
        refuse_missing(path, expected.difference(tensors))
        yield from tensors.items()


def _load(path: Path) -> Mapping[str, torch.Tensor]:
    import torch

    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0] if str(error) else "it can't be unpickled"
        raise ModelError(f"{path} holds more than tensors, or is damaged, and is not loaded: {reason}") from None
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        how = "is truncated, or no torch file" if _is_cut(path) else "is not a readable torch file"
        raise ModelError(f"{path} {how}: {' '.join(str(error).split())[:200]}") from None
    for key in _NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(one, torch.Tensor) for one in loaded.values()):
        raise ModelError(f"{path} is not a mapping of names to tensors")
    return loaded


def _is_zip(path: Path) -> bool:
    """The format since torch 1.6, which can be mapped into memory."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _is_cut(path: Path) -> bool:
    """A zip file without its last record, or a file of no bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - (1 << 16) - 22))
        return size == 0 or (_is_zip(path) and _ZIP_END not in file.read())
