"""The size and the types of a model's weights as they are stored, from the headers of its files. Torch-free."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plugserve.core.contracts.weights import ModelSource
from plugserve.core.errors import ModelError
from plugserve.core.memory.ledger_text import shown_bytes
from plugserve.core.model_files.gguf_file import read_gguf

_HEADER_LENGTH = struct.Struct("<Q")
_MOST_HEADER_BYTES = 100 << 20  # the format's own limit
_TORCH_FILES = ("*.bin", "*.pt", "*.pth")


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """bytes_by_type are by the type's name in the file ("BF16", "Q4_1"), in falling order of bytes; {} where only the
    files' sizes are known. largest_file_bytes is the file that takes most."""

    num_files: int
    num_bytes: int
    largest_file_bytes: int
    bytes_by_type: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """ "98 MiB as Q4_1, F32"."""
        types = ", ".join(list(self.bytes_by_type)[:3])
        return shown_bytes(self.num_bytes) + (f" as {types}" if types else "")


NO_WEIGHTS = StoredWeights(0, 0, 0)


def stored_weights(source: ModelSource) -> StoredWeights:
    """What the files' headers say; NO_WEIGHTS for a folder without weights. Raises ModelError for a broken header."""
    if source.kind == "gguf":
        return _of_gguf(source.path)
    files = [path for path in sorted(source.path.glob("*.safetensors")) if not path.name.startswith("consolidated")]
    if files:
        return _joined([_safetensors_types(path) for path in files])
    sizes = [path.stat().st_size for kind in _TORCH_FILES for path in source.path.glob(kind)]
    return StoredWeights(len(sizes), sum(sizes), max(sizes)) if sizes else NO_WEIGHTS


def _of_gguf(path: Path) -> StoredWeights:
    types: Counter[str] = Counter()
    for tensor in read_gguf(path).tensors.values():
        types[tensor.type_name] += tensor.num_bytes
    return _joined([types])


def _joined(files: list[Counter[str]]) -> StoredWeights:
    types = sum(files, Counter[str]())
    sizes = [file.total() for file in files]
    return StoredWeights(len(files), sum(sizes), max(sizes), dict(types.most_common()))


def _safetensors_types(path: Path) -> Counter[str]:
    """Bytes by type: 8 bytes with the header's length, then the header as JSON; the tensors are not touched."""
    types: Counter[str] = Counter()
    try:
        for name, entry in _safetensors_header(path).items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                types[str(entry["dtype"])] += int(end) - int(start)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelError(f"{path} is not a readable safetensors file: its header can't be read ({error})") from None
    return types


def _safetensors_header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        (length,) = _HEADER_LENGTH.unpack(file.read(_HEADER_LENGTH.size))
        if length > _MOST_HEADER_BYTES:
            raise ValueError(f"{length} bytes long")
        header: dict[str, Any] = json.loads(file.read(length))
    return header
