"""Seeds of requests that bring none."""

from __future__ import annotations

import random

from plugserve.server.pipeline.sampling_fields import SamplingFields


class RequestSeeds:
    """Seeds in order of arrival: random ones, or with a server's --seed a sequence that is the same after each start.

    Requests that arrive in the same order then get the same draws; equal requests still get different ones. Each
    worker has a sequence of its own.
    """

    def __init__(self, seed: int | None = None, worker_index: int = 0) -> None:
        self._draw = random.Random() if seed is None else random.Random(f"{seed} {worker_index}")

    def seeded(self, fields: SamplingFields) -> SamplingFields:
        """The fields with a seed: their own, or the next one."""
        if fields.seed is not None:
            return fields
        return fields.model_copy(update={"seed": self._draw.getrandbits(63)})
