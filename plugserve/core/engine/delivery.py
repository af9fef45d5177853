"""Collects a step's outputs into one columnar message for each server worker."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable

from plugserve.core.contracts.sampling import TokenLogprobs
from plugserve.core.engine.sequence import RequestKey, Sequence
from plugserve.core.wire.messages import FINISH_ERROR, FINISH_NONE, FINISH_STOP, StepOutputs
from plugserve.core.wire.sequence_times import SequenceTimes


class _Columns:
    __slots__ = (
        "ended",
        "errors",
        "finish",
        "ids",
        "logprobs",
        "num_tokens",
        "pooled",
        "prompt_logprobs",
        "started",
        "tokens",
    )

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.num_tokens: list[int] = []
        self.finish: list[int] = []
        self.tokens = array("i")
        self.started: dict[int, tuple[float, int]] = {}
        self.logprobs: dict[int, list[TokenLogprobs]] = {}
        self.prompt_logprobs: dict[int, list[TokenLogprobs | None]] = {}
        self.pooled: dict[int, bytes] = {}
        self.errors: dict[int, str] = {}
        self.ended: dict[int, SequenceTimes] = {}

    def message(self) -> StepOutputs:
        return StepOutputs(
            ids=self.ids,
            num_tokens=self.num_tokens,
            finish=self.finish,
            tokens=self.tokens.tobytes(),
            started=self.started,
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
            pooled=self.pooled,
            errors=self.errors,
            ended=self.ended,
        )


class Delivery:
    """Collects outputs between two calls of take, by the worker's identity. clock is that of sequences' times."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._columns: dict[bytes, _Columns] = {}

    def add_tokens(
        self,
        sequence: Sequence,
        token_ids: list[int],
        finish: int = FINISH_NONE,
        logprobs: list[TokenLogprobs] | None = None,
    ) -> None:
        """New tokens of sequence (none is fine at its end), with queue time and prompt logprobs before its first."""
        identity, request_id = sequence.key
        columns = self._of(identity)
        columns.ids.append(request_id)
        columns.num_tokens.append(len(token_ids))
        columns.finish.append(finish)
        columns.tokens.extend(token_ids)
        if logprobs:
            columns.logprobs[request_id] = logprobs
        if sequence.num_delivered == 0:
            started = sequence.first_scheduled_s if sequence.first_scheduled_s is not None else sequence.arrival_s
            columns.started[request_id] = (started - sequence.arrival_s, sequence.num_cached_tokens)
            if sequence.prompt_logprobs is not None:
                columns.prompt_logprobs[request_id] = sequence.prompt_logprobs
            sequence.first_token_s = self._clock()
        sequence.num_delivered += 1
        if finish != FINISH_NONE:
            columns.ended[request_id] = sequence.times(self._clock())

    def add_token(self, key: RequestKey, token_id: int) -> None:
        """One more token of a sequence that has some and goes on."""
        identity, request_id = key
        columns = self._columns.get(identity) or self._of(identity)
        columns.ids.append(request_id)
        columns.num_tokens.append(1)
        columns.finish.append(FINISH_NONE)
        columns.tokens.append(token_id)

    def add_pooled(self, sequence: Sequence, vector: bytes) -> None:
        """The one vector of a sequence that pools, and its end."""
        self.add_tokens(sequence, [], FINISH_STOP)
        self._of(sequence.key[0]).pooled[sequence.key[1]] = vector

    def add_vector(self, key: RequestKey, vector: bytes, *, arrived_s: float, scheduled_s: float) -> None:
        """The one vector of an encoder's input, and its end."""
        columns = self._of(key[0])
        columns.ids.append(key[1])
        columns.num_tokens.append(0)
        columns.finish.append(FINISH_STOP)
        now_s = self._clock()
        columns.started[key[1]] = (scheduled_s - arrived_s, 0)
        columns.pooled[key[1]] = vector
        columns.ended[key[1]] = SequenceTimes(arrived_s, scheduled_s, now_s, now_s)

    def add_failure(self, sequence: Sequence, message: str, finish: int) -> None:
        """A sequence that was taken in fails; message is one line, which is sent to the client."""
        self.add_error(sequence.key, message, finish)
        self._of(sequence.key[0]).ended[sequence.key[1]] = sequence.times(self._clock())

    def add_error(self, key: RequestKey, message: str, finish: int = FINISH_ERROR) -> None:
        """The request failed or was refused; message is one line, which is sent to the client."""
        columns = self._of(key[0])
        columns.ids.append(key[1])
        columns.num_tokens.append(0)
        columns.finish.append(finish)
        columns.errors[key[1]] = message

    def _of(self, identity: bytes) -> _Columns:
        columns = self._columns.get(identity)
        if columns is None:
            columns = self._columns[identity] = _Columns()
        return columns

    def take(self) -> list[tuple[bytes, StepOutputs]]:
        """(worker identity, message) for each worker with outputs since the last call."""
        if not self._columns:
            return []
        taken = [(identity, columns.message()) for identity, columns in self._columns.items()]
        self._columns = {}
        return taken
