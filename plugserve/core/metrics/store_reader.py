"""Reads the stores of all processes of a server, and sums them."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from plugserve.core.metrics.metric_store import CATALOGUE, CELLS, EXEMPLAR_CELLS, Family, MetricStore, read_entries

Cells = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A value that fell into a bucket, when (seconds since 1970), and its trace's id."""

    value: float
    at_s: float
    trace_id: str


@dataclass(slots=True)
class Reading:
    """A family's series, summed over processes: one number, or a histogram's counts and then its sum. exemplars are by
    bucket, the newest of all processes."""

    family: Family
    series: dict[tuple[str, ...], Cells] = field(default_factory=dict)
    exemplars: dict[tuple[str, ...], dict[int, Exemplar]] = field(default_factory=dict)


class StoreReader:
    """Reads the stores in folder, or own alone without one."""

    def __init__(self, own: MetricStore, folder: Path | None = None) -> None:
        self._own = own
        self._folder = folder
        self._files: dict[str, _StoreFile] = {}

    def read(self, *, with_exemplars: bool = False) -> list[Reading]:
        """Every family that has series, in the order of declaration."""
        readings: dict[str, Reading] = {}
        if self._folder is None:
            own = self._own
            listed = [(own.families[name], values, offset) for (name, values), offset in list(own.series.items())]
            _add(readings, listed, np.frombuffer(own.memory), own.bits, True, with_exemplars)
            return list(readings.values())
        for name in sorted(os.listdir(self._folder)):
            if name.endswith(CATALOGUE):
                file = self._files.get(name)
                if file is None:
                    file = self._files[name] = _StoreFile(self._folder / name)
                file.follow()
                _add(readings, file.series, file.cells, file.bits, file.is_alive, with_exemplars)
        return list(readings.values())


class _StoreFile:
    """One process's store, as another one sees it."""

    def __init__(self, catalogue: Path) -> None:
        self._catalogue = os.open(catalogue, os.O_RDONLY)
        cells = os.open(str(catalogue).removesuffix(CATALOGUE) + CELLS, os.O_RDONLY)
        mapped = mmap.mmap(cells, 0, prot=mmap.PROT_READ)
        os.close(cells)
        self.cells: Cells = np.frombuffer(mapped)
        self.bits = memoryview(mapped).cast("Q")
        self.series: list[tuple[Family, tuple[str, ...], int]] = []
        self._families: list[Family] = []
        self._position = 0

    def follow(self) -> None:
        """Read what has been added to the catalogue."""
        size = os.fstat(self._catalogue).st_size
        if size <= self._position:
            return
        data = os.pread(self._catalogue, size - self._position, self._position)
        data = data[: data.rfind(b"\n") + 1]
        self._position += len(data)
        for entry in read_entries(data):
            if isinstance(entry, Family):
                self._families.append(entry)
            else:
                number, offset, values = entry
                self.series.append((self._families[number], values, offset))

    @property
    def is_alive(self) -> bool:
        """The store's process runs: it holds the lock."""
        try:
            fcntl.flock(self._catalogue, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._catalogue, fcntl.LOCK_UN)
        return False


def _add(
    readings: dict[str, Reading],
    series: Iterable[tuple[Family, tuple[str, ...], int]],
    cells: Cells,
    bits: memoryview,
    is_alive: bool,
    with_exemplars: bool,
) -> None:
    for family, values, offset in series:
        if not is_alive and family.kind == "gauge":
            continue
        reading = readings.get(family.name)
        if reading is None:
            reading = readings[family.name] = Reading(family)
        elif reading.family.buckets != family.buckets or reading.family.labels != family.labels:
            continue  # a plugin's file was edited between two starts of processes
        num_cells = len(family.buckets) + 1 if family.buckets else 1
        own = cells[offset : offset + num_cells]
        known = reading.series.get(values)
        reading.series[values] = own.copy() if known is None else known + own
        if with_exemplars and family.has_exemplars:
            newest = reading.exemplars.setdefault(values, {})
            _add_exemplars(newest, family, cells, bits, offset + num_cells)


def _add_exemplars(newest: dict[int, Exemplar], family: Family, cells: Cells, bits: memoryview, offset: int) -> None:
    for bucket in range(len(family.buckets)):
        at = offset + bucket * EXEMPLAR_CELLS
        at_s = float(cells[at + 1])
        if at_s and (bucket not in newest or newest[bucket].at_s < at_s):
            trace_id = f"{bits[at + 2]:016x}{bits[at + 3]:016x}"
            newest[bucket] = Exemplar(float(cells[at]), at_s, trace_id)
