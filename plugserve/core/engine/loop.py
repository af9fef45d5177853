"""The engine's loop: drain the inbox, step, deliver.

A plain loop without asyncio. When idle it blocks in poll, without spinning.
"""

from __future__ import annotations

import gc
import logging
import math
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq

from plugserve.core.engine.adapter_loading import AdapterLoader
from plugserve.core.engine.serving_engine import ServingEngine
from plugserve.core.engine.throughput_log import NoThroughputLog, ThroughputLog
from plugserve.core.wire.heartbeats import Pulse
from plugserve.core.wire.messages import (
    AbortRequests,
    AdapterLoaded,
    GenerateRequest,
    LoadAdapter,
    StatsReply,
    StatsRequest,
    Stop,
    UnloadAdapter,
    WorkerGone,
    decode_to_engine,
    encode,
)

log = logging.getLogger(__name__)

_UPKEEP_DELAY_S = 0.3  # of idleness: upkeep takes up to 100 ms, in which a request would wait
_COMPILING_POLL_MS = 2
_IDLE_POLL_MS = 1000  # heartbeats continue while idle
_STALLED_POLL_MS = 5  # after an empty plan the scheduler is called again after this time, or when a message arrives


class EngineLoop:
    """Serves one loaded engine on socket (a bound ROUTER) and control (a DEALER to the supervisor)."""

    def __init__(
        self,
        engine: ServingEngine,
        socket: zmq.Socket[bytes],
        control: zmq.Socket[bytes],
        read_adapter: Callable[[Path], Any] | None = None,
        pulse: Pulse | None = None,
        throughput: ThroughputLog | NoThroughputLog | None = None,
    ) -> None:
        self._throughput = throughput if throughput is not None else NoThroughputLog()
        self._pulse = pulse if pulse is not None else Pulse.unwatched()
        self._engine = engine
        self._adapters = AdapterLoader(read_adapter, engine.adapters)
        self._socket = socket
        self._control = control
        self._is_stopping = False
        self._upkeep_due_s: float | None = None  # set while idle, until it is done
        self._poller = zmq.Poller()
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(control, zmq.POLLIN)

    def run(self) -> None:
        """Serve until the supervisor sends Stop."""
        engine = self._engine
        while not self._is_stopping:
            self._pulse.beat()
            engine.flight.tick()
            self._poller.poll(self._patience_ms())
            self._drain(self._control)
            self._drain(self._socket)
            if engine.is_compiling:
                engine.admit_compiled()
            if self._adapters.is_busy:
                self._note_adapters()
            now_s = time.monotonic()
            if now_s >= self._throughput.due_s:
                self._throughput.write(now_s)
            if engine.has_work:
                self._upkeep_due_s = now_s + _UPKEEP_DELAY_S
                engine.step()
                if engine.adapters.wanted:
                    self._adapters.read_again(engine.adapters.take_wanted())
            self._deliver()
        engine.flight.leave()

    def _note_adapters(self) -> None:
        for read in self._adapters.finished():
            if not read.is_again:
                self._control.send(encode(AdapterLoaded(id=read.id, error=read.error)))
            elif read.error:
                log.error("adapter can't be read again name=%s error=%s", read.name, read.error)
                self._engine.refuse_adapter(read.id, f"The LoRA adapter {read.name!r} can't be read: {read.error}")

    def _patience_ms(self) -> int:
        """The timeout of poll: 0 while there is work, until the next heartbeat otherwise."""
        if self._engine.has_work:
            return _STALLED_POLL_MS if self._engine.is_stalled else 0
        if self._engine.is_compiling or self._adapters.is_busy:
            return _COMPILING_POLL_MS
        if self._upkeep_due_s is None:
            return _IDLE_POLL_MS
        wait_s = self._upkeep_due_s - time.monotonic()
        if wait_s > 0:
            return math.ceil(1e3 * wait_s)
        self._upkeep_due_s = None
        self._engine.check_integrity()
        self._engine.step_time.flush()
        gc.collect()
        return _IDLE_POLL_MS

    def _deliver(self) -> None:
        for identity, outputs in self._engine.take_outputs():
            self._socket.send_multipart([identity, encode(outputs)])

    def _drain(self, socket: zmq.Socket[bytes]) -> None:
        while True:
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                self._handle(frames if socket is self._socket else [b"", *frames])
            except (msgspec.DecodeError, IndexError, ValueError):
                log.exception("unreadable message ignored")

    def _handle(self, frames: list[bytes]) -> None:
        identity, message = frames[0], decode_to_engine(frames[1])
        if isinstance(message, GenerateRequest):
            prompt = array("i")
            prompt.frombytes(frames[2])
            self._engine.admit(
                (identity, message.id),
                prompt,
                message.params,
                priority=message.priority,
                user=message.user,
                cache_salt=message.cache_salt,
                block_hashes=frames[3] if len(frames) > 3 else b"",
                adapter_id=message.adapter_id,
                origin=message.origin,
            )
        elif isinstance(message, AbortRequests):
            for id in message.ids:
                self._engine.abort((identity, id))
        elif isinstance(message, StatsRequest):
            reply = StatsReply(call_id=message.call_id, stats=self._engine.snapshot())
            self._socket.send_multipart([identity, encode(reply)])
        elif isinstance(message, WorkerGone):
            count = self._engine.abort_worker(message.identity)
            log.warning("a server worker died, its requests are aborted count=%d", count)
        elif isinstance(message, LoadAdapter):
            self._adapters.submit(message)
        elif isinstance(message, UnloadAdapter):
            self._engine.adapters.retire(message.id)
            self._adapters.forget(message.id)
        elif isinstance(message, Stop):
            self._is_stopping = True
