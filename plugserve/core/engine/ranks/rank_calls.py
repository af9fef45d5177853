"""The calls that every rank's runner gets, as bytes: one message a call, in the order of rank 0's calls.

Ranks draw the same tokens from the same logits, so a step's input is all that they need, and no result travels back;
but in a pipeline the last stage alone draws, and its first rank sends the results to rank 0. An adapter is sent as its
folder, from which each rank reads its share, and as a number after that.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from plugserve.core.contracts.runner import ModelRunner, StepInput, StepResult
from plugserve.core.contracts.sampling import TokenLogprobs

READ: Final = b"R"
FORGET: Final = b"F"
LAUNCH: Final = b"L"
MASKS: Final = b"M"
COLLECT: Final = b"C"
CLOSE: Final = b"X"
NAMES: Final = {READ: "read", FORGET: "forget", LAUNCH: "launch", MASKS: "masks", COLLECT: "collect", CLOSE: "close"}


def _plain(value: Any) -> Any:
    if isinstance(value, array):
        return value.tolist()
    if isinstance(value, np.integer):
        return int(value)
    raise TypeError(f"a step holds {type(value).__name__}, which can't be sent to other ranks")


_encoder: Final = msgspec.msgpack.Encoder(enc_hook=_plain)
_step_decoder: Final = msgspec.msgpack.Decoder(StepInput)


def read_call(number: int, folder: Path) -> list[bytes]:
    """An adapter was read: all ranks do the same, before a step that loads it."""
    return [READ, str(number).encode(), str(folder).encode()]


def forget_call(number: int) -> list[bytes]:
    """The adapter won't be loaded any more."""
    return [FORGET, str(number).encode()]


def launch_call(step: StepInput) -> list[bytes]:
    """Adapters in step are numbers."""
    return [LAUNCH, _encoder.encode(step)]


def masks_call(step_id: int, masks: np.ndarray[Any, np.dtype[np.uint32]]) -> list[bytes]:
    return [MASKS, _encoder.encode((step_id, masks.shape[0])), np.ascontiguousarray(masks).tobytes()]


class _Result(msgspec.Struct, frozen=True, array_like=True):
    """A StepResult of a step that has not failed, without drafts."""

    step_id: int
    tokens: list[list[int]]
    duration_s: float
    logprobs: dict[int, list[TokenLogprobs]]
    prompt_logprobs: dict[int, list[TokenLogprobs]]
    pooled: dict[int, bytes]
    failed: dict[int, str]


RESULT: Final = b"R"
"""Begins a rank's message that is a result."""
_result_decoder: Final = msgspec.msgpack.Decoder(_Result)


def encode_result(result: StepResult) -> bytes:
    """The message of the rank that draws."""
    columns = (result.logprobs, result.prompt_logprobs, result.pooled, result.failed)
    return RESULT + _encoder.encode(_Result(result.step_id, result.tokens, result.duration_s, *columns))


def decode_result(message: bytes) -> StepResult:
    one = _result_decoder.decode(memoryview(message)[len(RESULT) :])
    return StepResult(
        one.step_id,
        one.tokens,
        one.duration_s,
        logprobs=one.logprobs,
        prompt_logprobs=one.prompt_logprobs,
        pooled=one.pooled,
        failed=one.failed,
    )


class RepeatedCalls:
    """Makes rank 0's calls on this rank's runner. read_adapter reads an adapter's folder; None: none are served."""

    def __init__(self, runner: ModelRunner, read_adapter: Callable[[Path], Any] | None) -> None:
        self._runner = runner
        self._read_adapter = read_adapter
        self._adapters: dict[int, Any] = {}  # by number

    def repeat(self, call: list[bytes]) -> StepResult | None:
        """The result of a collect, None for other calls."""
        kind = call[0]
        if kind == LAUNCH:
            self._launch(_step_decoder.decode(call[1]))
        elif kind == MASKS:
            step_id, num_rows = msgspec.msgpack.decode(call[1])
            self._runner.provide_masks(step_id, np.frombuffer(call[2], dtype=np.uint32).reshape(num_rows, -1).copy())
        elif kind == COLLECT:
            return self._runner.collect()
        elif kind == READ:
            self._read(int(call[1]), call[2].decode())
        elif kind == FORGET:
            self._adapters.pop(int(call[1]), None)
        return None

    def _read(self, number: int, folder: str) -> None:
        assert self._read_adapter is not None
        self._adapters[number] = self._read_adapter(Path(folder))

    def _launch(self, step: StepInput) -> None:
        if step.adapters:
            step.adapters = [(slot, number and self._adapters[number]) for slot, number in step.adapters]
        self._runner.launch(step)
