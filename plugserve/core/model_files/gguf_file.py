"""The metadata and tensor table of a GGUF file. Independent of models and tokenizers.

A GGUF file (versions 2 and 3, little-endian) is: magic, version, number of tensors, number of metadata entries, the
entries, the tensor table, padding to the alignment, the tensors' data. Scalars, strings and short arrays are read at
once; a long array (a vocabulary) is stepped over and read when asked for, so that a file opens in milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from plugserve.core.errors import ModelError
from plugserve.core.model_files.gguf_reader import SCALAR_STRUCTS, TYPE_ARRAY, TYPE_STRING, GgufReader
from plugserve.core.model_files.gguf_types import GGML_TYPES, READ_TYPES

_MAGIC = b"GGUF"
_DEFAULT_ALIGNMENT = 32
_LONG_ARRAY = 256  # entries; longer arrays are read on demand
_MAX_DIMENSIONS = 8
_MIN_ENTRY_BYTES = 8 + 4 + 1  # empty key, value type, one-byte value
_MIN_TENSOR_BYTES = 8 + 4 + 4 + 8  # empty name, no dimension, type, offset


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One row of the tensor table.

    shape is in torch's order (slowest dimension first; the file stores the reverse). offset counts from the start of
    the file. num_bytes is 0 for a type that this table doesn't know.
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int
    num_bytes: int

    @property
    def type_name(self) -> str:
        """The ggml name of the type ("Q4_1"), or "type 77" for an unknown number."""
        known = GGML_TYPES.get(self.ggml_type)
        return known[0] if known else f"type {self.ggml_type}"


@dataclass(frozen=True, slots=True)
class _LongArray:
    """The place of a long array: its entries start at offset."""

    value_type: int
    count: int
    offset: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The metadata and tensors of a GGUF file. Long arrays are not in metadata: array(key) reads them."""

    path: Path
    version: int
    alignment: int
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    data_offset: int
    _long_arrays: dict[str, _LongArray] = field(default_factory=dict, repr=False)

    def array(self, key: str) -> list[Any]:
        """The array under key, however long; [] when the file has none. Reads the file again for a long one."""
        long = self._long_arrays.get(key)
        if long is None:
            value = self.metadata.get(key, [])
            if not isinstance(value, list):
                raise ModelError(f"{self.path}: GGUF metadata {key!r} should be an array, got {type(value).__name__}")
            return value
        with GgufReader(self.path) as reader:
            reader.position = long.offset
            return reader.elements(long.value_type, long.count, key)

    def array_length(self, key: str) -> int:
        """The number of entries of the array under key; 0 when there is none."""
        long = self._long_arrays.get(key)
        return long.count if long else len(self.array(key))

    @property
    def architecture(self) -> str:
        """general.architecture, such as "llama"; "" when the file has none."""
        return str(self.metadata.get("general.architecture", ""))


@lru_cache(maxsize=4)
def _read_unchanged(path: Path, size: int, mtime_ns: int) -> GgufFile:
    with GgufReader(path) as reader:
        return _read(reader)


def read_gguf(path: Path) -> GgufFile:
    """Read metadata and tensor table of the file at path; the result is shared while the file doesn't change.

    Raises ModelError for a file that isn't GGUF, is cut off or corrupt, or is one part of a split model.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror or error}") from None
    return _read_unchanged(path, stat.st_size, stat.st_mtime_ns)


def is_gguf(path: Path) -> bool:
    """True when the file at path starts as a GGUF file does."""
    try:
        with path.open("rb") as file:
            return file.read(4) == _MAGIC
    except OSError:
        return False


def refuse_unread_types(gguf: GgufFile) -> None:
    """Raise ModelError when any tensor has a type that isn't read."""
    unread: dict[str, str] = {}
    for tensor in gguf.tensors.values():
        if tensor.type_name not in READ_TYPES:
            unread.setdefault(tensor.type_name, tensor.name)
    if unread:
        which = ", ".join(f"{type_name} (tensor {name!r})" for type_name, name in unread.items())
        raise ModelError(f"{gguf.path} has tensors of type {which}; supported types: {', '.join(READ_TYPES)}")


def _read(reader: GgufReader) -> GgufFile:
    version = _read_version(reader)
    num_tensors = reader.count(_MIN_TENSOR_BYTES, "tensors")
    num_entries = reader.count(_MIN_ENTRY_BYTES, "metadata entries")
    metadata: dict[str, Any] = {}
    long_arrays: dict[str, _LongArray] = {}
    for _ in range(num_entries):
        _read_entry(reader, metadata, long_arrays)
    _refuse_split(reader, metadata)
    alignment = _alignment(reader, metadata)
    table = [_read_tensor_row(reader) for _ in range(num_tensors)]
    data_offset = -(-reader.position // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, ggml_type, offset in table:
        if name in tensors:
            raise reader.fault(f"tensor {name!r} is listed twice")
        if offset % alignment:
            raise reader.fault(f"tensor {name!r} lies at offset {offset}, not a multiple of the alignment {alignment}")
        tensors[name] = _place_tensor(reader, name, shape, ggml_type, data_offset + offset)
    return GgufFile(reader.path, version, alignment, metadata, tensors, data_offset, long_arrays)


def _read_version(reader: GgufReader) -> int:
    if reader.buffer[:4] != _MAGIC:
        raise ModelError(f"{reader.path} is not a GGUF file: it doesn't start with 'GGUF'")
    reader.position = 4
    version = reader.u32("the header")
    if version in (2, 3):
        return version
    if int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3):
        raise ModelError(f"{reader.path} is a big-endian GGUF file; only little-endian ones are supported")
    raise ModelError(f"{reader.path} is GGUF version {version}; versions 2 and 3 are supported")


def _read_entry(reader: GgufReader, metadata: dict[str, Any], long_arrays: dict[str, _LongArray]) -> None:
    key = reader.string("a metadata key")
    what = f"metadata {key!r}"
    if key in metadata or key in long_arrays:
        raise reader.fault(f"{what} is given twice")
    value_type = reader.u32(what)
    if value_type != TYPE_ARRAY:
        metadata[key] = reader.value(value_type, what)
        return
    element_type, count = reader.array_header(what)
    if count <= _LONG_ARRAY or element_type == TYPE_ARRAY:
        metadata[key] = reader.elements(element_type, count, what)
        return
    long_arrays[key] = _LongArray(element_type, count, reader.position)
    if element_type == TYPE_STRING:
        reader.skip_strings(count, what)
    else:
        reader.position += count * SCALAR_STRUCTS[element_type].size


def _refuse_split(reader: GgufReader, metadata: dict[str, Any]) -> None:
    num_parts = metadata.get("split.count", 1)
    if isinstance(num_parts, int) and num_parts > 1:
        raise ModelError(
            f"{reader.path} is one part of a GGUF model split into {num_parts} files; "
            "merge them first (llama-gguf-split --merge)"
        )


def _alignment(reader: GgufReader, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise reader.fault(f"general.alignment is {alignment!r}, not a power of two")
    return alignment


def _read_tensor_row(reader: GgufReader) -> tuple[str, tuple[int, ...], int, int]:
    name = reader.string("the tensor table")
    what = f"the table's row of tensor {name!r}"
    num_dimensions = reader.u32(what)
    if num_dimensions > _MAX_DIMENSIONS:
        raise reader.fault(f"tensor {name!r} has {num_dimensions} dimensions")
    sizes = [reader.u64(what) for _ in range(num_dimensions)]
    return name, tuple(reversed(sizes)), reader.u32(what), reader.u64(what)


def _place_tensor(reader: GgufReader, name: str, shape: tuple[int, ...], ggml_type: int, offset: int) -> GgufTensor:
    known = GGML_TYPES.get(ggml_type)
    if known is None:
        return GgufTensor(name, shape, ggml_type, offset, 0)
    type_name, block_elements, block_bytes = known
    row = shape[-1] if shape else 1
    if row % block_elements:
        raise reader.fault(f"tensor {name!r} has rows of {row} elements, not a multiple of {type_name}'s block size")
    num_bytes = prod(shape) // block_elements * block_bytes
    if offset + num_bytes > reader.size:
        raise ModelError(
            f"{reader.path} is cut off: tensor {name!r} ends at byte {offset + num_bytes}, "
            f"but the file has {reader.size} bytes"
        )
    return GgufTensor(name, shape, ggml_type, offset, num_bytes)
