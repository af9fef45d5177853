"""A server worker's connection to an engine, in token ids.

EngineClient is the interface; ZmqEngineClient connects to an engine process, and tests use an engine of scripted
tokens. Every sequence is a TokenStream, which the client fills and the request empties; both live on the worker's event
loop.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import msgspec
import numpy as np
import zmq
import zmq.asyncio

from plugserve.core.contracts.engine_facts import EngineInfo, EngineStats
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.errors import EngineUnavailableError
from plugserve.core.wire.failures import FAILURES_BY_FINISH, FINISH_REASONS
from plugserve.core.wire.messages import (
    FINISH_NONE,
    FINISH_STOP,
    AbortRequests,
    GenerateRequest,
    StatsReply,
    StatsRequest,
    StepOutputs,
    decode_from_engine,
    encode,
)
from plugserve.core.wire.request_origin import NO_ORIGIN, RequestOrigin
from plugserve.server.worker.token_stream import OutputDelta, TokenStream

logger = logging.getLogger(__name__)

_STATS_TIMEOUT_S: Final = 1.0


class EngineClient(Protocol):
    """One model's engine, as a server worker sees it."""

    model: str

    @property
    def state(self) -> str:
        """ "up", or the state of the last EngineDown: "unloaded", "loading", "failed" or "dead"."""

    @property
    def info(self) -> EngineInfo | None:
        """The engine's facts; None before it was up for the first time."""

    @property
    def num_restarts(self) -> int:
        """The number of restarts of the engine since the server started."""

    def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        user: str = "",
        cache_salt: str = "",
        block_hashes: bytes = b"",
        adapter_id: int = 0,
        origin: RequestOrigin = NO_ORIGIN,
        waker: asyncio.Event,
    ) -> TokenStream:
        """Send the sequence to the engine now. block_hashes are those of the prompt's full blocks; without them the
        engine hashes the prompt. adapter_id is that of a LoRA adapter, 0 for none; origin is for the flight recorder.
        Raises EngineUnavailableError when no engine is up."""

    def abort(self, id: int) -> None:
        """Forget a sequence and free its memory. Unknown ids are ignored."""

    def abort_all(self) -> None:
        """Fail every sequence in flight, because the server stops."""

    async def stats(self) -> EngineStats:
        """A fresh snapshot, or the newest known one when the engine doesn't answer in a second."""

    def last_stats(self) -> EngineStats:
        """The newest known snapshot, without waiting."""

    async def close(self) -> None: ...


STOPPED: Final = "The server shut down before this request was finished; send it to another one."


class ZmqEngineClient:
    """Connected to one engine process by a DEALER socket; reconnects when its address changes. on_load is called with
    the number of sequences in flight when it changes.

    A request is sent once, to one engine process: when that process dies, the request fails.
    """

    def __init__(
        self,
        model: str,
        context: zmq.asyncio.Context,
        identity: bytes,
        on_load: Callable[[int], None] | None = None,
    ) -> None:
        self.model = model
        self._on_load = on_load
        self._context = context
        self._identity = identity
        self._state, self._reason = "loading", ""
        self._info: EngineInfo | None = None
        self._socket: zmq.asyncio.Socket | None = None
        self._receiver: asyncio.Task[None] | None = None
        self._streams: dict[int, TokenStream] = {}
        self._ids = itertools.count(1)
        self._calls: dict[int, asyncio.Future[EngineStats]] = {}
        self._last_stats = EngineStats()
        self._address = ""
        self.num_restarts = 0

    # ---- the supervisor's messages

    def connect(self, addresses: Sequence[str], info: EngineInfo, num_restarts: int = 0) -> None:
        """Connect to the engine at the one address. Requests on an earlier engine fail; the same address again changes
        nothing."""
        (address,) = addresses
        self.num_restarts = num_restarts
        if self._socket is not None and address == self._address:
            return
        self._drop("The engine was restarted while this request was running; send it again.")
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, self._identity)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.connect(address)
        self._socket, self._info, self._state, self._reason = socket, info, "up", ""
        self._address = address
        self._receiver = asyncio.create_task(self._receive(socket), name=f"engine {self.model}")

    def disconnect(self, state: str, reason: str) -> None:
        """The engine is not up: state is EngineDown's. Requests in flight fail at once."""
        self._state, self._reason = state, reason
        self._drop("The engine stopped while this request was running; send it again in a moment.")

    # ---- EngineClient

    @property
    def state(self) -> str:
        return self._state

    @property
    def reason(self) -> str:
        """Why the engine is not up, in one line; for logs and /health."""
        return self._reason

    @property
    def info(self) -> EngineInfo | None:
        return self._info

    def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        user: str = "",
        cache_salt: str = "",
        block_hashes: bytes = b"",
        adapter_id: int = 0,
        origin: RequestOrigin = NO_ORIGIN,
        waker: asyncio.Event,
    ) -> TokenStream:
        if self._socket is None:
            raise EngineUnavailableError(unavailable_message(self.model, self._state))
        request = GenerateRequest(
            id=next(self._ids),
            params=params,
            priority=priority,
            user=user,
            cache_salt=cache_salt,
            adapter_id=adapter_id,
            origin=origin,
        )
        stream = TokenStream(request.id, self.abort, waker)
        self._streams[request.id] = stream
        self._note_load()
        frames = [encode(request), np.asarray(prompt_token_ids, dtype="<i4").tobytes()]
        self._send([*frames, block_hashes] if block_hashes else frames)
        return stream

    def abort(self, id: int) -> None:
        if self._streams.pop(id, None) is not None:
            self._note_load()
            self._send([encode(AbortRequests(ids=[id]))])

    def abort_all(self) -> None:
        streams, self._streams = self._streams, {}
        self._note_load()
        if streams:
            self._send([encode(AbortRequests(ids=list(streams)))])
        for stream in streams.values():
            stream.fail(EngineUnavailableError(STOPPED))

    async def stats(self) -> EngineStats:
        if self._socket is not None:
            call_id = next(self._ids)
            reply = self._calls[call_id] = asyncio.get_running_loop().create_future()
            self._send([encode(StatsRequest(call_id=call_id))])
            try:
                return await asyncio.wait_for(reply, _STATS_TIMEOUT_S)
            except (TimeoutError, EngineUnavailableError) as error:
                logger.debug("model=%s no fresh stats: %s", self.model, error or "timeout")
            finally:
                self._calls.pop(call_id, None)
        return self._last_stats

    def last_stats(self) -> EngineStats:
        return self._last_stats

    async def close(self) -> None:
        self.disconnect("dead", "the server stops")

    # ---- wire

    def _send(self, frames: list[bytes]) -> None:
        """Queue a message; the socket has no limit, so this never waits and is safe while a task is cancelled."""
        if self._socket is None:
            return
        sent: Any = self._socket.send_multipart(frames)
        sent.add_done_callback(self._note_failed_send)

    def _note_failed_send(self, sent: asyncio.Future[Any]) -> None:
        if not sent.cancelled() and (error := sent.exception()) is not None:
            logger.error("model=%s message to the engine was lost: %s", self.model, error)

    def _drop(self, message: str) -> None:
        """Close the connection; everything in flight on it fails with message."""
        if self._receiver is not None:
            self._receiver.cancel()
            self._receiver = None
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None
        streams, self._streams = self._streams, {}
        self._note_load()
        for stream in streams.values():
            stream.fail(EngineUnavailableError(message))
        for reply in self._calls.values():
            if not reply.done():
                reply.set_exception(EngineUnavailableError(message))

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            frames = await socket.recv_multipart()
            try:
                message = decode_from_engine(frames[-1])
            except msgspec.DecodeError:
                logger.exception("model=%s unreadable message from the engine", self.model)
                continue
            if isinstance(message, StepOutputs):
                self._deliver(message)
            elif isinstance(message, StatsReply):
                self._last_stats = message.stats
                reply = self._calls.get(message.call_id)
                if reply is not None and not reply.done():
                    reply.set_result(message.stats)

    def _note_load(self) -> None:
        if self._on_load is not None:
            self._on_load(len(self._streams))

    def _deliver(self, outputs: StepOutputs) -> None:
        """Distribute one step's columns to the streams of their sequences."""
        tokens: list[int] = np.frombuffer(outputs.tokens, dtype="<i4").tolist()
        num_before = len(self._streams)
        start = 0
        for index, id in enumerate(outputs.ids):
            stop = start + outputs.num_tokens[index]
            finish = outputs.finish[index]
            stream = self._streams.get(id) if finish == FINISH_NONE else self._streams.pop(id, None)
            if stream is not None and finish != FINISH_NONE:
                stream.times = outputs.ended.get(id)
            if stream is not None and finish in FAILURES_BY_FINISH:
                _fail(stream, outputs, id, tokens[start:stop], finish)
            elif stream is not None:
                stream.deliver(_delta(outputs, id, tokens[start:stop], finish))
            start = stop
        if len(self._streams) < num_before:
            self._note_load()


def _fail(stream: TokenStream, outputs: StepOutputs, id: int, token_ids: list[int], finish: int) -> None:
    """Hand over the last tokens, if any, and then the error."""
    failure = FAILURES_BY_FINISH[finish]
    if token_ids:
        stream.deliver(_delta(outputs, id, token_ids, FINISH_NONE))
    stream.fail(failure.error(outputs.errors.get(id, failure.message)))


def _delta(outputs: StepOutputs, id: int, token_ids: list[int], finish: int) -> OutputDelta:
    delta = OutputDelta(token_ids, FINISH_REASONS[finish])
    delta.ends_with_stop_token = finish == FINISH_STOP
    if id in outputs.started:
        delta.queue_s, delta.num_cached_tokens = outputs.started[id]
    if outputs.pooled:
        delta.pooled = outputs.pooled.get(id)
    if outputs.logprobs:
        delta.logprobs = outputs.logprobs.get(id)
    if outputs.prompt_logprobs:
        delta.prompt_logprobs = outputs.prompt_logprobs.get(id)
    return delta


def unavailable_message(model: str, state: str) -> str:
    """The error message for a client when model's engine is not up."""
    if state == "loading":
        return f"The model {model!r} is still loading; try again in a moment."
    if state in ("unloaded", "unloading", "failed"):
        return f"The model {model!r} has just been unloaded; try again in a moment."
    return f"The engine of {model!r} is down and being restarted; try again in a moment."
