"""Decode steps as CUDA graphs: one token a row, captured once for each number of rows, replayed with new contents.

A step is two graphs: forward (read row state, the model, logits) and draw (a token each, fed back into row state), so
that steps whose draw needs more than a temperature replay the first and draw eagerly. Steps of a number of rows that
wasn't captured are filled up with the state's stand-in row. Knows nothing of requests.
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

from plugserve.core.kernels.drawing import Drawing
from plugserve.core.kernels.step_state import advance_rows
from plugserve.core.runner.device_state import DeviceState
from plugserve.core.runner.transfers import to_device

log = logging.getLogger(__name__)

ForwardRows = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""(rows [B], query_starts [B + 1]) of one token each -> logits [B, V], context lengths [B]."""


def row_buckets(most: int) -> list[int]:
    """Numbers of rows worth capturing: dense where a step's time grows by the row."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, 512, 32), *range(512, most + 1, 64)]
    return sorted({min(size, most) for size in sizes} | {most})


@dataclass(slots=True)
class _Captured:
    forward: torch.cuda.CUDAGraph
    draw: torch.cuda.CUDAGraph
    logits: torch.Tensor


class CapturedSteps:
    """Captured decode steps of up to max_num_rows rows."""

    def __init__(self, state: DeviceState, forward: ForwardRows, drawing: Drawing, max_num_rows: int) -> None:
        device = state.device
        self._state = state
        self._forward = forward
        self._drawing = drawing
        self._sizes = row_buckets(max_num_rows)
        self._graphs: dict[int, _Captured] = {}
        self._uploaded: list[int] = []
        self._rows = torch.full((max_num_rows,), state.stand_in, dtype=torch.int32, device=device)
        self._starts = torch.arange(max_num_rows + 1, dtype=torch.int32, device=device)
        self._drawn = torch.empty(max_num_rows, dtype=torch.int32, device=device)

    def capture(self) -> None:
        """Capture every size, the largest first, whose memory the smaller ones then share."""
        started_s = time.perf_counter()
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        for size in reversed(self._sizes):
            self._graphs[size] = self._capture(size, pool, stream)
        torch.cuda.synchronize()
        log.info("captured CUDA graphs sizes=%d seconds=%.1f", len(self._sizes), time.perf_counter() - started_s)

    def _capture(self, size: int, pool: Any, stream: torch.cuda.Stream) -> _Captured:
        rows, starts, drawn = self._rows[:size], self._starts[: size + 1], self._drawn[:size]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # once outside a capture: compiles kernels, fills library handles
            logits, lengths = self._forward(rows, starts)
            self._draw(logits, rows, lengths, drawn)
        torch.cuda.current_stream().wait_stream(stream)
        forward, draw = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(forward, pool=pool, stream=stream):
            logits, lengths = self._forward(rows, starts)
        with torch.cuda.graph(draw, pool=pool, stream=stream):
            self._draw(logits, rows, lengths, drawn)
        return _Captured(forward, draw, logits)

    def _draw(self, logits: torch.Tensor, rows: torch.Tensor, lengths: torch.Tensor, drawn: torch.Tensor) -> None:
        state = self._state
        self._drawing.draw(logits, rows, lengths, state.temperature, state.seed, drawn)
        advance_rows(rows, lengths, drawn, state.tokens, state.num_computed, state.stand_in)

    def _size_for(self, num_rows: int) -> int:
        return self._sizes[bisect_left(self._sizes, num_rows)]

    def forward(self, rows: list[int]) -> torch.Tensor:
        """Replay the forward pass of one token of each row; logits [B, V], valid until the next step."""
        size = self._size_for(len(rows))
        wanted = rows + [self._state.stand_in] * (size - len(rows))
        if wanted != self._uploaded:
            self._rows[:size].copy_(to_device(np.array(wanted, dtype=np.int32), self._state.device))
            self._uploaded = wanted
        graphs = self._graphs[size]
        graphs.forward.replay()
        return graphs.logits[: len(rows)]

    def draw(self, num_rows: int) -> torch.Tensor:
        """Replay the draw of the step that forward ran: drawn [B] int32, fed back already; -1 where logits are not
        numbers. Valid until the next step."""
        self._graphs[self._size_for(num_rows)].draw.replay()
        return self._drawn[:num_rows]
