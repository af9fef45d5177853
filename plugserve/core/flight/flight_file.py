"""The flight recorder's file: areas of records in one mapped file, which survives the process that writes it.

head      magic, version, sizes of the areas; watched_until_s, which readers write
facts     JSON: what the engine is
gauges    one record of counts
detail    JSON of plugins and a map of the blocks, written while somebody watches
requests  one record a request, in a slot that it keeps until it has ended and a later one takes it
steps     one record a step, in a ring
tokens    token ids of prompts, in a ring; empty unless they are asked for
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from plugserve.core.errors import ConfigError
from plugserve.core.flight.flight_records import GAUGES, MAGIC, REQUEST, STEP, VERSION

_HEAD: Final = struct.Struct("<8sIIIIQ")  # magic, version, slots, steps, facts bytes, tokens
_SIZES_MUST: Final = struct.Struct("<III")  # of the records, so that a reader of another layout notices
_WATCHED_AT: Final = 56
_HEAD_BYTES: Final = 64
_FACTS_BYTES: Final = 8192
_DETAIL_BYTES: Final = 65536
_LENGTH: Final = struct.Struct("<Q")
_PAGE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class FlightSizes:
    """How much a file holds: requests, steps, token ids of prompts."""

    num_requests: int
    num_steps: int
    num_tokens: int = 0


class FlightFile:
    """A mapped file. Made by create (the engine) or open (readers)."""

    def __init__(self, mapped: mmap.mmap, sizes: FlightSizes) -> None:
        self.map = mapped
        self.sizes = sizes
        self.gauges_at = _HEAD_BYTES + _FACTS_BYTES
        self.detail_at = self.gauges_at + GAUGES.size
        self.requests_at = self.detail_at + _DETAIL_BYTES
        self.steps_at = self.requests_at + sizes.num_requests * REQUEST.size
        self.tokens_at = _aligned(self.steps_at + sizes.num_steps * STEP.size)

    @classmethod
    def create(cls, path: Path, sizes: FlightSizes, facts: bytes) -> FlightFile:
        """A new file in place of one that may be there, which its readers keep until they open this one. Written whole:
        touching a page that a full disk has no room for would kill the process. Raises OSError."""
        new = path.with_name(path.name + ".new")
        try:
            flight = cls._create(new, sizes, facts)
        except OSError:
            new.unlink(missing_ok=True)  # a part of it, on a full disk
            raise
        new.replace(path)
        return flight

    @classmethod
    def _create(cls, path: Path, sizes: FlightSizes, facts: bytes) -> FlightFile:
        with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "r+b") as file:
            left = cls._num_bytes(sizes)
            while left > 0:
                left -= file.write(bytes(min(left, _PAGE)))
            file.flush()
            flight = cls(mmap.mmap(file.fileno(), 0), sizes)
        _HEAD.pack_into(
            flight.map, 0, MAGIC, VERSION, sizes.num_requests, sizes.num_steps, _FACTS_BYTES, sizes.num_tokens
        )
        _SIZES_MUST.pack_into(flight.map, _HEAD.size, REQUEST.size, STEP.size, GAUGES.size)
        flight.write_facts(facts)
        return flight

    @classmethod
    def open(cls, path: Path) -> FlightFile:
        """Raises OSError, or ConfigError for a file that is none of these."""
        is_writable = os.access(path, os.W_OK)
        with path.open("r+b" if is_writable else "rb") as file:
            if os.fstat(file.fileno()).st_size < _HEAD_BYTES:
                raise ConfigError(f"{path} is no flight recorder's file")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE if is_writable else mmap.ACCESS_READ)
        magic, version, num_requests, num_steps, _, num_tokens = _HEAD.unpack_from(mapped)
        if magic != MAGIC:
            raise ConfigError(f"{path} is no flight recorder's file")
        sizes = FlightSizes(num_requests, num_steps, num_tokens)
        must = (REQUEST.size, STEP.size, GAUGES.size)
        if version != VERSION or _SIZES_MUST.unpack_from(mapped, _HEAD.size) != must:
            raise ConfigError(f"{path} was written by another version of plugserve (layout {version}, not {VERSION})")
        if len(mapped) < cls._num_bytes(sizes):
            raise ConfigError(f"{path} is cut off: {len(mapped)} of {cls._num_bytes(sizes)} bytes")
        return cls(mapped, sizes)

    @classmethod
    def _num_bytes(cls, sizes: FlightSizes) -> int:
        records = sizes.num_requests * REQUEST.size + sizes.num_steps * STEP.size
        return _aligned(_HEAD_BYTES + _FACTS_BYTES + GAUGES.size + _DETAIL_BYTES + records) + 4 * sizes.num_tokens

    # ---- texts

    def write_facts(self, facts: bytes) -> None:
        """Once, before the file gets its name."""
        start = _HEAD_BYTES
        _LENGTH.pack_into(self.map, start, min(len(facts), _FACTS_BYTES - _LENGTH.size))
        self.map[start + _LENGTH.size : start + _LENGTH.size + len(facts)] = facts

    def read_facts(self) -> bytes:
        (length,) = _LENGTH.unpack_from(self.map, _HEAD_BYTES)
        start = _HEAD_BYTES + _LENGTH.size
        return bytes(self.map[start : start + min(length, _FACTS_BYTES)])

    def write_detail(self, serial: int, detail: bytes) -> None:
        """Left out where it is too long. serial grows with each call."""
        if len(detail) > _DETAIL_BYTES - 3 * _LENGTH.size:
            return
        start = self.detail_at
        _LENGTH.pack_into(self.map, start, serial)
        _LENGTH.pack_into(self.map, start + 8, len(detail))
        self.map[start + 16 : start + 16 + len(detail)] = detail
        _LENGTH.pack_into(self.map, start + _DETAIL_BYTES - 8, serial)

    def read_detail(self) -> bytes:
        """b"" while there is none, or while it is being written."""
        start = self.detail_at
        (serial,) = _LENGTH.unpack_from(self.map, start)
        (length,) = _LENGTH.unpack_from(self.map, start + 8)
        data = bytes(self.map[start + 16 : start + 16 + min(length, _DETAIL_BYTES - 24)])
        serials = {
            serial,
            _LENGTH.unpack_from(self.map, start)[0],
            _LENGTH.unpack_from(self.map, start + _DETAIL_BYTES - 8)[0],
        }
        return data if serial and len(serials) == 1 else b""

    # ---- watching

    @property
    def watched_until_s(self) -> float:
        """Until when, on the engine's clock, a reader wants details."""
        return float(struct.unpack_from("<d", self.map, _WATCHED_AT)[0])

    def watch(self, until_s: float) -> None:
        """Ask the engine to write details. Only for a file that this process may write."""
        struct.pack_into("<d", self.map, _WATCHED_AT, until_s)


def _aligned(offset: int) -> int:
    return (offset + 63) // 64 * 64
