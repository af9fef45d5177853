"""A folder of weights: its files, their quantisation, whether any is missing or torn. Headers only; torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from plugserve.core.errors import ModelError, one_line
from plugserve.core.model_files.json_file import read_json_object
from plugserve.core.model_files.lfs_pointer import refuse_pointer

QUANTISATIONS: Mapping[str, str] = {
    "awq": "4-bit GEMM packing, with zero points",
    "compressed-tensors": "naive-quantized, int-quantized and float-quantized (8 bits: int or fp8; scales by tensor, "
    "channel, group or block) and pack-quantized (int4 and int8), symmetric or not",
    "fp8": "float8_e4m3fn with one scale a tensor, a channel or a block (weight_block_size)",
    "gptq": "2, 4 and 8 bits, symmetric or not, with or without desc_act",
}
"""Quantised checkpoints that are read (dequantised at load), by quant_method."""

_MOST_HEADER_BYTES = 100_000_000  # the format's own limit
_INDEX = "model.safetensors.index.json"


def quantisation_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """config.json's quantization_config; None for an unquantised model. Raises ModelError for one that isn't read."""
    found = config.get("quantization_config") or config.get("compression_config")
    if not found:
        return None
    method = str(found.get("quant_method", "unknown")) if isinstance(found, Mapping) else "unknown"
    if method not in QUANTISATIONS:
        raise ModelError(
            f"quantised checkpoints with quant_method {method!r} are not supported; supported are "
            f"{', '.join(QUANTISATIONS)}, GGUF files and unquantised models"
        )
    return dict(found)


def check_folder(folder: Path) -> list[Path]:
    """The safetensors files in folder, in order. Raises ModelError for a shard that is missing, torn, or without a
    tensor that the index puts there."""
    shards = _find_shards(folder)
    for path, names in shards.items():
        _check_shard(path, names)
    return list(shards)


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


def read_index(index: Path) -> dict[Path, set[str]]:
    """Shard: the tensors that the index puts there. Raises ModelError for a broken index or a missing shard.

    Only files in the index's folder are read.
    """
    try:
        weight_map: Any = read_json_object(index, is_required=True)["weight_map"]
        entries = [(str(name), Path(shard).name) for name, shard in weight_map.items()]
    except (ModelError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is not an index with a weight_map: {one_line(error)}") from None
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
    """Open the shard once, so that a broken download is reported before minutes of loading."""
    with open_safetensors(path) as shard:
        missing = expected.difference(shard.keys())
    refuse_missing(path, missing)


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """The file's names and metadata. Raises ModelError for a file that is torn or not readable."""
    refuse_pointer(path)
    try:
        file = safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        torn = _torn(path)
        why = f"it is truncated, {torn}; download or copy it again" if torn else one_line(error)
        raise ModelError(f"{path} is not a readable safetensors file: {why}") from None
    with file:
        yield file


def _torn(path: Path) -> str:
    """How much of a safetensors file is missing, by its header; "" for one that is broken otherwise."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            if size < 8 or size < 8 + header_size <= 8 + _MOST_HEADER_BYTES:
                return f"its {size} bytes end within its header"
            if header_size > _MOST_HEADER_BYTES:
                return ""
            header = json.loads(file.read(header_size))
        ends = [one["data_offsets"][1] for name, one in header.items() if name != "__metadata__"]
        expected = 8 + header_size + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return ""
    return f"its header describes {expected} bytes, it has {size}" if size < expected else ""


def refuse_missing(path: Path, missing: set[str]) -> None:
    """Raise ModelError when a shard lacks tensors that the index puts there."""
    if missing:
        raise ModelError(
            f"{path} lacks {len(missing)} tensors that the index puts there, the first is {min(missing)!r}"
        )
