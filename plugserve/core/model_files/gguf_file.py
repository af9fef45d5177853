"""The metadata and tensor table of a GGUF file. Knows nothing of models, tokenizers or dequantising.

A GGUF file (versions 2 and 3, little-endian) is: magic, version, number of tensors, number of metadata entries, the
entries, the tensor table, padding to the alignment, the tensors' data. Scalars, strings and short arrays are read at
once; a long array (a vocabulary) is stepped over and read when asked for, so that a file opens in milliseconds.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from plugserve.core.errors import ModelError

_MAGIC = b"GGUF"
_DEFAULT_ALIGNMENT = 32
_LONG_ARRAY = 256  # entries; longer arrays are read on demand
_MAX_DIMENSIONS = 8
_MAX_NESTING = 4
_MIN_ENTRY_BYTES = 8 + 4 + 1  # empty key, value type, one-byte value
_MIN_TENSOR_BYTES = 8 + 4 + 4 + 8  # empty name, no dimension, type, offset

_TYPE_STRING, _TYPE_ARRAY, _TYPE_BOOL = 8, 9, 7
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SCALAR_STRUCTS = {number: struct.Struct("<" + code) for number, code in _SCALARS.items()}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

# number: (name, elements in a block, bytes of a block)
GGML_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}

READ_TYPES = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("Q8_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"),
)
"""The types that weights/gguf_blocks.py dequantises."""


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
    """Where a long array lies: its entries start at offset."""

    value_type: int
    count: int
    offset: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a GGUF file says of itself. metadata has no long arrays: ask array(key) for those."""

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
        with _Reader(self.path) as reader:
            reader.position = long.offset
            return reader.elements(long.value_type, long.count, key)

    def array_length(self, key: str) -> int:
        """How many entries the array under key has; 0 when there is none."""
        long = self._long_arrays.get(key)
        return long.count if long else len(self.array(key))

    @property
    def architecture(self) -> str:
        """general.architecture, such as "llama"; "" when the file doesn't say."""
        return str(self.metadata.get("general.architecture", ""))


class _Reader:
    """Reads typed values from a mapped file in order; everything malformed is a ModelError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        try:
            with path.open("rb") as file:
                self.buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise ModelError(f"{path} is not a GGUF file: it is empty") from None
        except OSError as error:
            raise ModelError(f"{path} can't be read: {error.strerror or error}") from None
        self.size = len(self.buffer)

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.buffer.close()

    def fault(self, what: str) -> ModelError:
        return ModelError(f"{self.path} is not a readable GGUF file: {what} (at byte {self.position} of {self.size})")

    def require(self, num_bytes: int, what: str) -> None:
        """Raise unless num_bytes more bytes are there."""
        if num_bytes > self.size - self.position:
            raise self.fault(f"the file is cut off or corrupt in {what}")

    def unpack(self, layout: struct.Struct, what: str) -> Any:
        self.require(layout.size, what)
        (value,) = layout.unpack_from(self.buffer, self.position)
        self.position += layout.size
        return value

    def u32(self, what: str) -> int:
        return int(self.unpack(_U32, what))

    def u64(self, what: str) -> int:
        return int(self.unpack(_U64, what))

    def string(self, what: str) -> str:
        length = self.u64(what)
        self.require(length, what)
        raw = self.buffer[self.position : self.position + length]
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise self.fault(f"{what} is not UTF-8") from None
        self.position += length
        return text

    def count(self, min_bytes: int, what: str) -> int:
        """A number of things that take at least min_bytes each; absurd ones are refused before anything is read."""
        number = self.u64(what)
        if number * min_bytes > self.size - self.position:
            raise self.fault(f"{number} {what} can't fit in the file")
        return number

    def array_header(self, what: str) -> tuple[int, int]:
        """(type of the elements, how many), checked against the size of the file."""
        value_type = self.u32(what)
        if value_type in _SCALAR_STRUCTS:
            min_bytes = _SCALAR_STRUCTS[value_type].size
        elif value_type in (_TYPE_STRING, _TYPE_ARRAY):
            min_bytes = 8
        else:
            raise self.fault(f"{what} is an array of unknown value type {value_type}")
        return value_type, self.count(min_bytes, f"elements of {what}")

    def value(self, value_type: int, what: str, depth: int = 0) -> Any:
        scalar = _SCALAR_STRUCTS.get(value_type)
        if scalar is not None:
            return self.unpack(scalar, what)
        if value_type == _TYPE_STRING:
            return self.string(what)
        if value_type == _TYPE_ARRAY and depth < _MAX_NESTING:
            element_type, count = self.array_header(what)
            return self.elements(element_type, count, what, depth + 1)
        raise self.fault(f"{what} has unknown value type {value_type}")

    def elements(self, value_type: int, count: int, what: str, depth: int = 1) -> list[Any]:
        """count values of value_type from here on."""
        code = _SCALARS.get(value_type)
        if code is not None:
            layout = struct.Struct(f"<{count}{code}")
            self.require(layout.size, what)
            values = list(layout.unpack_from(self.buffer, self.position))
            self.position += layout.size
            return values
        if value_type == _TYPE_STRING:
            return self._strings(count, what)
        return [self.value(value_type, what, depth) for _ in range(count)]

    def _strings(self, count: int, what: str) -> list[str]:
        buffer, size, position, unpack = self.buffer, self.size, self.position, _U64.unpack_from
        texts = []
        try:
            for _ in range(count):
                (length,) = unpack(buffer, position)
                start = position + 8
                position = start + length
                if position > size:
                    break
                texts.append(buffer[start:position].decode())
        except (struct.error, UnicodeDecodeError):
            self.position = min(position, size)
        else:
            self.position = min(position, size)
        if len(texts) != count:
            raise self.fault(f"entry {len(texts)} of {what} is cut off or not UTF-8")
        return texts

    def skip_strings(self, count: int, what: str) -> None:
        buffer, size, position, unpack = self.buffer, self.size, self.position, _U64.unpack_from
        try:
            for _ in range(count):
                position += 8 + unpack(buffer, position)[0]
        except (struct.error, OverflowError, ValueError):
            position = size + 1
        if position > size:
            raise self.fault(f"the file is cut off or corrupt in {what}")
        self.position = position


@lru_cache(maxsize=4)
def _read_unchanged(path: Path, size: int, mtime_ns: int) -> GgufFile:
    with _Reader(path) as reader:
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


def _read(reader: _Reader) -> GgufFile:
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


def _read_version(reader: _Reader) -> int:
    if reader.buffer[:4] != _MAGIC:
        raise ModelError(f"{reader.path} is not a GGUF file: it doesn't start with 'GGUF'")
    reader.position = 4
    version = reader.u32("the header")
    if version in (2, 3):
        return version
    if int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3):
        raise ModelError(f"{reader.path} is a big-endian GGUF file; only little-endian ones are supported")
    raise ModelError(f"{reader.path} is GGUF version {version}; versions 2 and 3 are supported")


def _read_entry(reader: _Reader, metadata: dict[str, Any], long_arrays: dict[str, _LongArray]) -> None:
    key = reader.string("a metadata key")
    what = f"metadata {key!r}"
    if key in metadata or key in long_arrays:
        raise reader.fault(f"{what} is given twice")
    value_type = reader.u32(what)
    if value_type != _TYPE_ARRAY:
        metadata[key] = reader.value(value_type, what)
        return
    element_type, count = reader.array_header(what)
    if count <= _LONG_ARRAY or element_type == _TYPE_ARRAY:
        metadata[key] = reader.elements(element_type, count, what)
        return
    long_arrays[key] = _LongArray(element_type, count, reader.position)
    if element_type == _TYPE_STRING:
        reader.skip_strings(count, what)
    else:
        reader.position += count * _SCALAR_STRUCTS[element_type].size


def _refuse_split(reader: _Reader, metadata: dict[str, Any]) -> None:
    num_parts = metadata.get("split.count", 1)
    if isinstance(num_parts, int) and num_parts > 1:
        raise ModelError(
            f"{reader.path} is one part of a GGUF model split into {num_parts} files; "
            "merge them first (llama-gguf-split --merge)"
        )


def _alignment(reader: _Reader, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise reader.fault(f"general.alignment is {alignment!r}, not a power of two")
    return alignment


def _read_tensor_row(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    name = reader.string("the tensor table")
    what = f"the table's row of tensor {name!r}"
    num_dimensions = reader.u32(what)
    if num_dimensions > _MAX_DIMENSIONS:
        raise reader.fault(f"tensor {name!r} has {num_dimensions} dimensions")
    sizes = [reader.u64(what) for _ in range(num_dimensions)]
    return name, tuple(reversed(sizes)), reader.u32(what), reader.u64(what)


def _place_tensor(reader: _Reader, name: str, shape: tuple[int, ...], ggml_type: int, offset: int) -> GgufTensor:
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
