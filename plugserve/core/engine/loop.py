"""The engine process: drain the inbox, step, deliver. Run by the supervisor as
`python -m plugserve.core.engine.loop RUNTIME_DIR MODEL_INDEX GENERATION`.

A plain loop without asyncio. With nothing to do it blocks in poll; it never spins for long.
"""

from __future__ import annotations

import gc
import logging
import math
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq

from plugserve.core.contracts.engine_facts import EngineInfo, EngineStats
from plugserve.core.contracts.runner import ModelRunner
from plugserve.core.engine.adapter_loading import AdapterLoader
from plugserve.core.engine.build import EngineBuilder, engine_info
from plugserve.core.engine.engine import Engine
from plugserve.core.errors import UserError
from plugserve.core.model_files.model_source import ModelSource
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.log_setup import set_up_logging
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.child_process import die_with_parent
from plugserve.core.wire.messages import (
    AbortRequests,
    EngineReady,
    GenerateRequest,
    LoadAdapter,
    StartFailed,
    StatsReply,
    StatsRequest,
    Stop,
    UnloadAdapter,
    WorkerGone,
    decode_to_engine,
    encode,
)
from plugserve.core.wire.runtime_folder import RuntimeFolder

log = logging.getLogger(__name__)

_UPKEEP_DELAY_S = 0.3  # of idleness: upkeep takes up to 100 ms, in which a request would wait
_COMPILING_POLL_MS = 2
_STALLED_POLL_MS = 5  # a scheduler that plans nothing is asked again after so long, or when something arrives


class LocalEngineHandle:
    """The plugserve.EngineHandle of this process's engine, for the life-cycle hooks."""

    def __init__(self, model: str, info: EngineInfo, engine: Engine) -> None:
        self.model = model
        self.info = info
        self._engine = engine

    def stats(self) -> EngineStats:
        return self._engine.snapshot()


class EngineLoop:
    """Serves one loaded engine on socket (a bound ROUTER) and control (a DEALER to the supervisor)."""

    def __init__(
        self,
        engine: Engine,
        socket: zmq.Socket[bytes],
        control: zmq.Socket[bytes],
        read_adapter: Callable[[Path], Any] | None = None,
    ) -> None:
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
        """Until the supervisor says Stop."""
        engine = self._engine
        while not self._is_stopping:
            self._poller.poll(self._patience_ms())
            self._drain(self._control)
            self._drain(self._socket)
            if engine.is_compiling:
                engine.admit_compiled()
            if self._adapters.reading:
                for loaded in self._adapters.finished():
                    self._control.send(encode(loaded))
            if engine.has_work:
                self._upkeep_due_s = time.monotonic() + _UPKEEP_DELAY_S
                engine.step()
            self._deliver()

    def _patience_ms(self) -> int | None:
        """How long poll may wait: not at all while there is work, for ever when there is none."""
        if self._engine.has_work:
            return _STALLED_POLL_MS if self._engine.is_stalled else 0
        if self._engine.is_compiling or self._adapters.reading:
            return _COMPILING_POLL_MS
        if self._upkeep_due_s is None:
            return None
        wait_s = self._upkeep_due_s - time.monotonic()
        if wait_s > 0:
            return math.ceil(1e3 * wait_s)
        self._upkeep_due_s = None
        self._engine.check_integrity()
        self._engine.step_time.flush()
        gc.collect()
        return None

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
            )
        elif isinstance(message, AbortRequests):
            for id in message.ids:
                self._engine.abort((identity, id))
        elif isinstance(message, StatsRequest):
            reply = StatsReply(call_id=message.call_id, stats=self._engine.snapshot())
            self._socket.send_multipart([identity, encode(reply)])
        elif isinstance(message, WorkerGone):
            count = self._engine.abort_worker(message.identity)
            log.warning("a server worker is gone, its requests are aborted count=%d", count)
        elif isinstance(message, LoadAdapter):
            self._adapters.submit(message)
        elif isinstance(message, UnloadAdapter):
            self._engine.adapters.retire(message.id)
        elif isinstance(message, Stop):
            self._is_stopping = True


class EngineProcess:
    """From the command line to a served engine and back."""

    def __init__(self, folder: RuntimeFolder, model_index: int, generation: int) -> None:
        self._started_s = time.monotonic()
        self._folder = folder
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._control = self._dealer(f"engine:{model_index}:{generation}".encode())
        self._address = folder.engine_address(model_index, generation)
        self._model_index = model_index

    def _dealer(self, identity: bytes) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, identity)
        socket.setsockopt(zmq.LINGER, 1000)
        socket.connect(self._folder.control_address)
        return socket

    def run(self) -> int:
        """Exit code: 0 after Stop, 2 for the user's fault, 1 for ours."""
        try:
            settings = self._folder.read_settings()
            set_up_logging(settings.log_level)
            source = self._folder.read_models()[self._model_index]
            self._serve(settings, source)
        except UserError as error:
            self._report(StartFailed(message=str(error), is_user_error=True))
            return 2
        except Exception as error:
            log.exception("engine failed")
            self._report(StartFailed(message=f"{type(error).__name__}: {error}", is_user_error=False))
            return 1
        return 0

    def _serve(self, settings: Settings, source: ModelSource) -> None:
        host = PluginHost.load(settings.selection())
        host.configure(settings)
        builder = EngineBuilder(settings, host, source)
        engine, runner, facts = builder.build()
        info = engine_info(facts, builder.slots, time.monotonic() - self._started_s, builder.cache_salt)
        handle = LocalEngineHandle(source.name, info, engine)
        socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.LINGER, 200)
        socket.bind(self._address)
        host.observe("plugserve_engine_started", engine=handle)
        gc.collect()
        gc.freeze()
        gc.disable()  # the loop collects when it is idle
        self._report(EngineReady(info=info))
        EngineLoop(engine, socket, self._control, builder.read_adapter).run()
        host.observe("plugserve_engine_stopping", engine=handle)
        self._leave(engine, runner, socket)

    def _leave(self, engine: Engine, runner: ModelRunner, socket: zmq.Socket[bytes]) -> None:
        engine.drain()
        engine.step_time.flush()
        runner.close()
        socket.close()

    def _report(self, message: EngineReady | StartFailed) -> None:
        self._control.send(encode(message))

    def close(self) -> None:
        self._control.close()
        self._context.term()


def main() -> int:
    die_with_parent()
    folder, model_index, generation = sys.argv[1:4]
    process = EngineProcess(RuntimeFolder(Path(folder)), int(model_index), int(generation))
    code = process.run()
    process.close()
    return code


if __name__ == "__main__":
    sys.exit(main())
