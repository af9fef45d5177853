"""Typed values from a GGUF file, read in order; everything malformed is a ModelError."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from plugserve.core.errors import ModelError

_MAX_NESTING = 4
TYPE_STRING, TYPE_ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
SCALAR_STRUCTS = {number: struct.Struct("<" + code) for number, code in _SCALARS.items()}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class GgufReader:
    """A file mapped into memory, and the position of the next value."""

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

    def __enter__(self) -> GgufReader:
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
        if value_type in SCALAR_STRUCTS:
            min_bytes = SCALAR_STRUCTS[value_type].size
        elif value_type in (TYPE_STRING, TYPE_ARRAY):
            min_bytes = 8
        else:
            raise self.fault(f"{what} is an array of unknown value type {value_type}")
        return value_type, self.count(min_bytes, f"elements of {what}")

    def value(self, value_type: int, what: str, depth: int = 0) -> Any:
        scalar = SCALAR_STRUCTS.get(value_type)
        if scalar is not None:
            return self.unpack(scalar, what)
        if value_type == TYPE_STRING:
            return self.string(what)
        if value_type == TYPE_ARRAY and depth < _MAX_NESTING:
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
        if value_type == TYPE_STRING:
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
