"""Weights that torch.distributed.checkpoint saved (.metadata and *.distcp), DTensor shards included, without a process
group.

The description of the checkpoint is a pickle: it is read with the classes that such a description consists of, and
nothing else. Tensors are read by torch's own loader, one at a time, which joins shards and uses weights_only.
"""

from __future__ import annotations

import pickle
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from tqdm import tqdm

from plugserve.core.errors import ModelError, one_line

METADATA: Final = ".metadata"
_MOST_METADATA_BYTES: Final = 1 << 30
_MOST_PREFIX_PARTS: Final = 4
_CLASSES: Final[Mapping[str, frozenset[str]]] = {
    "torch.distributed.checkpoint.metadata": frozenset(
        {
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "ChunkStorageMetadata",
            "BytesStorageMetadata",
            "TensorStorageMetadata",
            "TensorProperties",
            "_MEM_FORMAT_ENCODING",
        }
    ),
    "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo"}),
    "torch.serialization": frozenset({"_get_layout"}),
    "torch": frozenset({"Size"}),
    "pathlib": frozenset({"Path", "PosixPath", "PurePosixPath"}),
    "collections": frozenset({"OrderedDict"}),
    "builtins": frozenset({"set", "frozenset"}),
}


class _DescriptionUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in _CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a checkpoint's description")


class _Reader(FileSystemReader):
    """Reads tensors by a description that has been read and checked."""

    def __init__(self, folder: Path, description: Metadata) -> None:
        super().__init__(folder)
        self._description = description

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._description


def iterate_distributed(
    folder: Path, expected: Collection[str], *, show_progress: bool = True
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, whole tensor) of the model in a checkpoint. expected are the names that the model asks for. Where the
    checkpoint nests the model's tensors beside an optimizer's ("model.", "app.model."), that prefix is taken off and
    the others are left out. Checks the description and the files' sizes before it returns."""
    description = _describe(folder)
    _check_files(folder, description)
    tensors = {
        name: one for name, one in description.state_dict_metadata.items() if isinstance(one, TensorStorageMetadata)
    }
    prefix = _prefix(tensors, expected)
    return _read(folder, description, {name: tensors[name] for name in tensors if name.startswith(prefix)}, prefix,
                 show_progress)  # fmt: skip


def _describe(folder: Path) -> Metadata:
    path = folder / METADATA
    try:
        if path.stat().st_size > _MOST_METADATA_BYTES:
            raise ModelError(f"{path} has {path.stat().st_size} bytes, too many for a checkpoint's description")
        with path.open("rb") as file:
            description = _DescriptionUnpickler(file).load()
    except FileNotFoundError:
        raise ModelError(
            f"{path} is missing: it describes the checkpoint's *.distcp files, and is written last; the checkpoint is "
            "not complete"
        ) from None
    except pickle.UnpicklingError as error:
        raise ModelError(f"{path} is damaged or holds code, and is not loaded: {one_line(error)}") from None
    except (OSError, EOFError, ValueError, TypeError, AttributeError, ImportError, IndexError, KeyError) as error:
        raise ModelError(f"{path} is truncated or damaged: {one_line(error)}") from None
    if not isinstance(description, Metadata) or not isinstance(description.storage_data, Mapping):
        raise ModelError(f"{path} is not the description of a checkpoint that torch.distributed.checkpoint saved")
    return description


def _check_files(folder: Path, description: Metadata) -> None:
    """Raise ModelError for a file that is missing, outside of folder, or too short."""
    ends: dict[str, int] = {}
    for info in description.storage_data.values():
        name = str(info.relative_path)
        ends[name] = max(ends.get(name, 0), int(info.offset) + int(info.length))
    for name, end in sorted(ends.items()):
        path = folder / name
        if Path(name).name != name:
            raise ModelError(f"{folder / METADATA} names {name!r}, which is not a file of its folder")
        if not path.is_file():
            raise ModelError(f"{path} is missing: {METADATA} names it as one of {len(ends)} files")
        if path.stat().st_size < end:
            raise ModelError(f"{path} is truncated: {METADATA} describes {end} bytes, it has {path.stat().st_size}")


def _prefix(names: Collection[str], expected: Collection[str]) -> str:
    """The prefix under which most of the expected names stand; the shortest of several."""
    prefixes = {""}
    for name in names:
        parts = name.split(".")
        prefixes |= {".".join(parts[:count]) + "." for count in range(1, min(_MOST_PREFIX_PARTS, len(parts)))}
    wanted = set(expected)

    def num_found(prefix: str) -> int:
        return sum(name.startswith(prefix) and name.removeprefix(prefix) in wanted for name in names)

    return max(sorted(prefixes, key=len), key=num_found)


def _read(
    folder: Path, description: Metadata, tensors: Mapping[str, TensorStorageMetadata], prefix: str, show_progress: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    bar = tqdm(
        tensors.items(), desc="Loading distributed checkpoint tensors", unit="tensor", disable=not show_progress,
        file=sys.stderr,
    )  # fmt: skip
    for name, stored in bar:
        tensor = torch.empty(stored.size, dtype=stored.properties.dtype)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                load({name: tensor}, storage_reader=_Reader(folder, description), no_dist=True)
        except (Exception, CheckpointException) as error:  # the latter wraps many kinds, and is no Exception
            raise ModelError(f"{folder}: tensor {name!r} can't be read: {one_line(error)[:300]}") from None
        yield name.removeprefix(prefix), tensor
