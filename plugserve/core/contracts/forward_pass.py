"""Forward passes: what a backend brings that leaves rows, sampling and results to core/rows/host_runner.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from plugserve.core.contracts.runner import RunnerInfo

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class HostBatch:
    """A step's T tokens of B entries, lying one entry after another: token ids, positions and cache slots (block *
    block_size + offset) [T], query_starts [B + 1], context_lens [B] with this step's tokens, block_table
    [B, max_blocks], and where each entry's last token lies, last_index [B]."""

    token_ids: Ints
    positions: Ints
    slots: Ints
    query_starts: Ints
    context_lens: Ints
    block_table: np.ndarray[Any, np.dtype[np.int32]]
    last_index: Ints


@dataclass(frozen=True, slots=True)
class Computed:
    """logits [W, V] of the wanted tokens, which may be changed; hidden [T, H] after the last norm, where asked for.
    Both are valid until the next call."""

    logits: Floats
    hidden: Floats | None = None


@runtime_checkable
class ForwardPass(Protocol):
    """A loaded model over a paged KV cache in numpy terms. Called from one thread at a time.

    has_hidden_states False: rows that ask for prompt logprobs or pooling fail alone.
    """

    has_hidden_states: bool

    def load(self) -> RunnerInfo:
        """Load weights, allocate the KV cache, warm up. Raises ModelError or ConfigError with one clear line."""

    def compute(self, batch: HostBatch, wanted: Ints, needs_hidden: bool) -> Computed:
        """Write the keys and values of batch's tokens into the cache, attend causally within each entry, and return the
        logits that follow the tokens at wanted [W], indices into T."""

    def logits_of(self, hidden: Floats) -> Floats:
        """Logits [N, V] of hidden states [N, H] after the last norm."""

    def copy_blocks(self, out: list[tuple[int, int]], back: list[tuple[int, int]]) -> None:
        """Copy (block, host slot) pairs out, then (host slot, block) pairs back, in order. Called only where
        RunnerInfo.num_host_slots is above 0."""

    def close(self) -> None:
        """Free memory and threads."""
