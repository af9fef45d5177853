"""Which safetensors files a model's folder holds, and whether they are whole. Reads headers alone; torch-free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from plugserve.core.errors import ModelError

_INDEX = "model.safetensors.index.json"


def check_folder(folder: Path) -> list[Path]:
    """The weight files in folder, in order. Raises ModelError for a quantised checkpoint and for a shard that is
    missing, torn, or without a tensor that the index puts there."""
    _refuse_quantized(folder)
    shards = _find_shards(folder)
    for path, names in shards.items():
        _check_shard(path, names)
    return list(shards)


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
        with safe_open(path, framework="np") as shard:
            missing = expected.difference(shard.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a readable safetensors file: {one_line(error)}") from None
    if missing:
        raise ModelError(
            f"{path} lacks {len(missing)} tensors that the index puts there, the first is {min(missing)!r}"
        )


def one_line(error: Exception) -> str:
    """An error's text without line breaks, or its type."""
    return " ".join(str(error).split()) or type(error).__name__
