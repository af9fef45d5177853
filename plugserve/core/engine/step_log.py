"""Writes step times into a trace (--record-trace).

Steps are kept in memory and written when the engine falls idle, or thousands at once, never one by one.
"""

from __future__ import annotations

import logging
from typing import Final

from plugserve.core.engine.step_time import StepTimeFit
from plugserve.core.wire.trace_file import TraceFacts, TraceSteps, TraceWriter

log = logging.getLogger(__name__)

_MOST_STEPS: Final = 4096


class RecordedStepTimes(StepTimeFit):
    """A StepTimeFit that writes what it observes to a trace, after facts as the header of this engine's start."""

    def __init__(self, path: str, facts: TraceFacts) -> None:
        super().__init__()
        self._model = facts.model
        self._writer = TraceWriter(path)
        self._steps: list[tuple[int, int, int, float]] = []
        self._writer.write([facts])

    def observe(self, num_prompt_tokens: int, num_decoding: int, num_pairs: int, duration_s: float) -> None:
        super().observe(num_prompt_tokens, num_decoding, num_pairs, duration_s)
        self._steps.append((num_prompt_tokens, num_decoding, num_pairs, round(duration_s * 1e3, 3)))
        if len(self._steps) >= _MOST_STEPS:
            self.flush()

    def flush(self) -> None:
        steps, self._steps = self._steps, []
        if steps:
            try:
                self._writer.write([TraceSteps(steps, model=self._model)])
            except OSError as error:
                log.error("steps are missing in the trace: %s", error)
