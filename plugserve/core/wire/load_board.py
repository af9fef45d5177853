"""How many sequences each server worker has in each engine, in shared memory: a worker that chooses among a model's
engines sees the load of all workers.

A file of the runtime folder, mapped by all workers; each writes numbers of its own (doubles, stored whole).
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np


class LoadBoard:
    """A row an engine, a column a worker."""

    def __init__(self, path: Path, num_workers: int) -> None:
        """Map a file that create has made."""
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._loads = np.frombuffer(self._map, dtype=np.float64).reshape(-1, num_workers)

    @classmethod
    def create(cls, path: Path, num_engines: int, num_workers: int) -> None:
        path.write_bytes(bytes(8 * num_engines * num_workers))

    def note(self, engine_index: int, worker_index: int, num_sequences: int) -> None:
        """A worker's sequences in an engine, now."""
        self._loads[engine_index, worker_index] = num_sequences

    def load(self, engine_index: int) -> int:
        """The sequences of all workers in an engine."""
        return int(self._loads[engine_index].sum())

    def forget_worker(self, worker_index: int) -> None:
        """A worker has ended, and its sequences with it."""
        self._loads[:, worker_index] = 0
