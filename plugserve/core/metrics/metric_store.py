"""The metric values of one process, in a file that other processes map.

A store has cells (float64, written by its process alone) and a catalogue: one JSON line for each family and for each
series, which says where the series' cells begin. A counter or gauge has one cell. A histogram of n buckets has n
counts, not cumulative, and the sum; with exemplars then four cells a bucket: value, time, the trace id in two halves.

The next process with the same role takes the file over: counters go on, gauges begin at 0.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import mmap
import os
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Final

import msgspec

logger = logging.getLogger(__name__)

CELLS: Final = ".cells"
CATALOGUE: Final = ".catalogue"
EXEMPLAR_CELLS: Final = 4
_NUM_CELLS: Final = 1 << 19
_CELL_BYTES: Final = 8


class Family(msgspec.Struct, frozen=True):
    """A metric. kind is "counter", "gauge" or "histogram"; a counter's name has no "_total". buckets are a histogram's
    upper bounds, the last one infinite."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    has_exemplars: bool = False

    @property
    def num_cells(self) -> int:
        """Cells of one series."""
        if not self.buckets:
            return 1
        return len(self.buckets) * (1 + EXEMPLAR_CELLS * self.has_exemplars) + 1


def with_last(buckets: tuple[float, ...]) -> tuple[float, ...]:
    """buckets and the one without a bound."""
    return (*buckets, math.inf) if not buckets or buckets[-1] != math.inf else buckets


class MetricStore:
    """Made once a process. Without a path its values are in this process's memory alone.

    cells and bits are memory as float64 and as uint64. lock guards writes: hooks and strategies may run in
    several threads.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.lock = threading.Lock()
        self.families: dict[str, Family] = {}
        self.series: dict[tuple[str, tuple[str, ...]], int] = {}
        self._numbers: dict[str, int] = {}
        self._num_families = 0
        self._declared: set[str] = set()  # by this process
        self._num_used = 0
        self._is_full = False
        self._catalogue: int | None = None
        if path is None:
            memory = mmap.mmap(-1, _NUM_CELLS * _CELL_BYTES)
        else:
            self._catalogue, memory = self._take(path)
        self.memory = memory
        self.cells = memoryview(memory).cast("d")
        self.bits = memoryview(memory).cast("Q")
        for (name, _), offset in self.series.items():
            if self.families[name].kind == "gauge":
                self.cells[offset] = 0.0

    def _take(self, path: Path) -> tuple[int, mmap.mmap]:
        """The first of path, path.1, ... whose process has ended: its catalogue, locked, and its cells."""
        for number in count():
            own = path if number == 0 else path.with_name(f"{path.name}.{number}")
            catalogue = os.open(f"{own}{CATALOGUE}", os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(catalogue, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(catalogue)
                continue
            cells = os.open(f"{own}{CELLS}", os.O_CREAT | os.O_RDWR, 0o600)
            os.ftruncate(cells, _NUM_CELLS * _CELL_BYTES)
            mapped = mmap.mmap(cells, _NUM_CELLS * _CELL_BYTES)
            os.close(cells)
            self._replay(catalogue)
            return catalogue, mapped
        raise AssertionError

    def _replay(self, catalogue: int) -> None:
        data = os.pread(catalogue, os.fstat(catalogue).st_size, 0)
        whole = data.rfind(b"\n") + 1
        os.ftruncate(catalogue, whole)
        os.lseek(catalogue, whole, os.SEEK_SET)
        families: list[Family] = []
        for entry in read_entries(data[:whole]):
            if isinstance(entry, Family):
                self._add(entry)
                families.append(entry)
            else:
                number, offset, values = entry
                self.series[families[number].name, values] = offset
                self._num_used = max(self._num_used, offset + families[number].num_cells)

    def declare(self, family: Family) -> None:
        """Raises ValueError for another family of that name."""
        with self.lock:
            known = self.families.get(family.name)
            if known != family:
                if family.name in self._declared:
                    raise ValueError(f"the metric {family.name} is declared twice, differently")
                self._add(family)
                self._append(msgspec.json.encode(family))
            self._declared.add(family.name)

    def _add(self, family: Family) -> None:
        """A new family, or a new form of one, whose old series are no longer written."""
        if family.name in self.families:
            self.series = {key: offset for key, offset in self.series.items() if key[0] != family.name}
        self.families[family.name] = family
        self._numbers[family.name] = self._num_families
        self._num_families += 1

    def offset(self, family: Family, values: tuple[str, ...]) -> int:
        """Where the cells of a series begin; made on first use. Series beyond what fits share cells that aren't
        shown."""
        key = family.name, values
        with self.lock:
            offset = self.series.get(key)
            if offset is not None:
                return offset
            offset = self._num_used
            if offset + family.num_cells > _NUM_CELLS - family.num_cells:
                self._note_full(family)
                return _NUM_CELLS - family.num_cells
            self._num_used += family.num_cells
            self.series[key] = offset
            self._append(json.dumps([self._numbers[family.name], offset, values]).encode())
            return offset

    def _note_full(self, family: Family) -> None:
        if not self._is_full:
            self._is_full = True
            logger.warning("metric=%s has too many values of labels: the memory for metrics is full", family.name)

    def _append(self, line: bytes) -> None:
        if self._catalogue is not None:
            with contextlib.suppress(OSError):  # no space: this process's metrics lack a series
                os.write(self._catalogue, line + b"\n")


def read_entries(lines: bytes) -> Iterator[Family | tuple[int, int, tuple[str, ...]]]:
    """The families, and (number of the family, offset, values of labels) of series, of whole lines of a catalogue."""
    for line in lines.splitlines():
        entry = json.loads(line)
        if isinstance(entry, dict):
            # JSON has no infinity
            buckets = tuple(math.inf if bound is None else bound for bound in entry.get("buckets", ()))
            yield msgspec.convert(entry | {"buckets": buckets}, Family)
        else:
            yield entry[0], entry[1], tuple(entry[2])
