"""Forward passes and draws as CUDA graphs: one token a row, captured once for each number of rows, replayed with new
contents.

A step is two graphs: forward (read row state, the model, logits) and draw (a token each, fed back into row state), so
that steps whose draw needs more than a temperature replay the first and draw eagerly. Numbers of rows that weren't
captured are filled up with the state's padding row. To verify drafts, a row occurs several times in the batch, each
time one token further.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from plugserve.backends.torch.runner.device_state import DeviceState
from plugserve.backends.torch.runner.transfers import to_device

log = logging.getLogger(__name__)

ForwardRows = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""(rows [B], query_starts [B + 1], offsets [B]) of one token each -> logits [B, V], context lengths [B]."""
DrawRows = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""(logits [B, V], rows [B], context lengths [B], drawn [B]): fill drawn, and feed it back."""


def row_buckets(most: int) -> list[int]:
    """Numbers of rows that are captured: dense where one row more costs time."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, 512, 32), *range(512, most + 1, 64)]
    return sorted({min(size, most) for size in sizes} | {most})


@dataclass(slots=True)
class Replayed:
    """The results of a replayed forward pass for B rows, valid until the next one: raw logits [B, V], the device rows
    [B] int32 and how many tokens of each are known [B], the one that was computed included."""

    logits: torch.Tensor
    rows: torch.Tensor
    num_known: torch.Tensor


@dataclass(slots=True)
class _Captured:
    forward: torch.cuda.CUDAGraph
    draw: torch.cuda.CUDAGraph | None
    logits: torch.Tensor
    lengths: torch.Tensor


class CapturedSteps:
    """Captured steps of up to max_num_rows rows; without draw forward passes alone."""

    def __init__(
        self, state: DeviceState, forward: ForwardRows, max_num_rows: int, draw: DrawRows | None = None
    ) -> None:
        device = state.device
        self._state = state
        self._forward = forward
        self._draw = draw
        self._sizes = row_buckets(max_num_rows)
        self._graphs: dict[int, _Captured] = {}
        self._uploaded: tuple[list[int], list[int]] = ([], [])
        self._rows = torch.full((max_num_rows,), state.padding_row, dtype=torch.int32, device=device)
        self._offsets = torch.zeros(max_num_rows, dtype=torch.int32, device=device)
        self._starts = torch.arange(max_num_rows + 1, dtype=torch.int32, device=device)
        self._drawn = torch.empty(max_num_rows, dtype=torch.int32, device=device)

    @property
    def max_num_rows(self) -> int:
        return self._sizes[-1]

    def capture(self, what: str) -> None:
        """Capture every size, the largest first, whose memory the smaller ones then share. what is for the log."""
        started_s = time.perf_counter()
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        for size in reversed(self._sizes):
            self._graphs[size] = self._capture(size, pool, stream)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started_s
        log.info("captured CUDA graphs of=%s sizes=%d seconds=%.1f", what, len(self._sizes), seconds)

    def _capture(self, size: int, pool: Any, stream: torch.cuda.Stream) -> _Captured:
        rows, starts, offsets = self._rows[:size], self._starts[: size + 1], self._offsets[:size]
        drawn = self._drawn[:size]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # once outside a capture: compiles kernels, fills library handles
            logits, lengths = self._forward(rows, starts, offsets)
            if self._draw is not None:
                self._draw(logits, rows, lengths, drawn)
        torch.cuda.current_stream().wait_stream(stream)
        forward, draw = torch.cuda.CUDAGraph(), None
        with torch.cuda.graph(forward, pool=pool, stream=stream):
            logits, lengths = self._forward(rows, starts, offsets)
        if self._draw is not None:
            draw = torch.cuda.CUDAGraph()
            with torch.cuda.graph(draw, pool=pool, stream=stream):
                self._draw(logits, rows, lengths, drawn)
        return _Captured(forward, draw, logits, lengths)

    def _size_for(self, num_rows: int) -> int:
        return self._sizes[bisect_left(self._sizes, num_rows)]

    def forward(self, rows: list[int], offsets: list[int] | None = None) -> Replayed:
        """Replay the forward pass of one token of each row: the first that is not computed, or offsets further."""
        size = self._size_for(len(rows))
        rest = size - len(rows)
        places = (rows + [self._state.padding_row] * rest, (offsets or [0] * len(rows)) + [0] * rest)
        if places != self._uploaded:
            ints = to_device(np.array(places, dtype=np.int32), self._state.device)
            self._rows[:size].copy_(ints[0])
            self._offsets[:size].copy_(ints[1])
            self._uploaded = places
        graphs, num_rows = self._graphs[size], len(rows)
        graphs.forward.replay()
        return Replayed(graphs.logits[:num_rows], self._rows[:num_rows], graphs.lengths[:num_rows])

    def draw(self, num_rows: int) -> torch.Tensor:
        """Replay the draw of the step that forward ran: drawn [B] int32, fed back already; -1 where logits are not
        numbers. Valid until the next step."""
        graph = self._graphs[self._size_for(num_rows)].draw
        assert graph is not None
        graph.replay()
        return self._drawn[:num_rows]
