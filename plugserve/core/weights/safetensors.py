"""Weights from safetensors files, memory-mapped, one or many shards. Knows nothing of models or devices."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from plugserve.core.errors import ModelError

if TYPE_CHECKING:
    import torch

_INDEX = "model.safetensors.index.json"


def iterate_safetensors(folder: Path, *, show_progress: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of every shard in folder. Checks config, index and shards' headers before it returns."""
    _refuse_quantized(folder)
    shards = _find_shards(folder)
    for path, names in shards.items():
        _check_shard(path, names)
    return _read_shards(list(shards), show_progress)


def _refuse_quantized(folder: Path) -> None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'} can't be read: {error}") from None
    quantization = config.get("quantization_config") if isinstance(config, dict) else None
    if quantization:
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else "unknown"
        raise ModelError(
            f"{folder} is a quantised checkpoint (quantization_config: {method}), which is not read; "
            "use the unquantised model or a GGUF file"
        )


def _find_shards(folder: Path) -> dict[Path, set[str]]:
    """Shard: the tensors that the index expects in it (none without an index)."""
    index = folder / _INDEX
    if not index.is_file():
        others = sorted(folder.glob("*.safetensors.index.json"))
        index = others[0] if others else index
    if index.is_file():
        return _read_index(index)
    single = folder / "model.safetensors"
    if single.is_file():
        return {single: set()}
    paths = [path for path in sorted(folder.glob("*.safetensors")) if not path.name.startswith("consolidated")]
    if not paths:
        raise ModelError(f"{folder} holds no *.safetensors weights")
    return {path: set() for path in paths}


def _read_index(index: Path) -> dict[Path, set[str]]:
    try:
        weight_map: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        entries = [(str(name), Path(shard).name) for name, shard in weight_map.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is not a safetensors index with a weight_map: {error!r}") from None
    shards: dict[Path, set[str]] = {}
    for name, shard in sorted(entries, key=lambda entry: entry[1]):
        shards.setdefault(index.parent / shard, set()).add(name)
    if not shards:
        raise ModelError(f"{index} lists no tensors")
    for path in shards:
        if not path.is_file():
            raise ModelError(f"{path} is missing: {index.name} names it as one of {len(shards)} shards")
    return shards


def _check_shard(path: Path, expected: set[str]) -> None:
    """Open the shard once, so that a broken download shows before minutes of loading."""
    try:
        with safe_open(path, framework="pt") as shard:
            missing = expected.difference(shard.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a readable safetensors file: {_one_line(error)}") from None
    if missing:
        raise ModelError(
            f"{path} lacks {len(missing)} tensors that the index puts there, the first is {min(missing)!r}"
        )


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
