"""The parent process: starts engines and server workers, restarts processes that die, and shuts everything down in
order.

Torch-free. Holds the state that exists once a server: listening socket, adapters, stored responses.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from plugserve.core.contracts.engine_facts import EngineInfo
from plugserve.core.errors import EngineError, EngineUnavailableError, UserError
from plugserve.core.model_files.model_source import ModelSource
from plugserve.core.plugin_system.plugin_loading import Plugin
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.handed_settings import as_line
from plugserve.core.wire.heartbeats import WELL, HangLimits, HeartbeatBoard
from plugserve.core.wire.messages import (
    AdapterCall,
    AdapterLoaded,
    AdaptersNoted,
    EngineDown,
    EngineReady,
    EngineUp,
    ResponseCall,
    StartFailed,
    Stop,
    WorkerGone,
    WorkerHello,
    WorkerReady,
    decode_to_supervisor,
    encode,
)
from plugserve.core.wire.runtime_folder import RuntimeFolder
from plugserve.server.api.responses.response_store import BoundedStore
from plugserve.server.supervisor.adapter_registry import AdapterRegistry, AdapterTransport, served_names
from plugserve.server.supervisor.children import Child
from plugserve.server.supervisor.hang_watch import HangWatch, Watched
from plugserve.server.supervisor.hung_stack import PluginFiles
from plugserve.server.supervisor.process_slots import EngineSlot, WorkerSlot
from plugserve.server.supervisor.startup_lines import announce_engine, announce_ready
from plugserve.server.supervisor.substitute_server import SubstituteServer

log = logging.getLogger(__name__)

_ENGINE_PATIENCE_S = 1.0
_WORKER_PATIENCE_S = 1.0


class Supervisor:
    """Runs until a signal, or until the first start of a process fails. listener is the bound socket that all workers
    share."""

    def __init__(
        self,
        settings: Settings,
        sources: Sequence[ModelSource],
        folder: RuntimeFolder,
        listener: socket.socket,
        plugins: Mapping[str, Plugin] | None = None,
    ) -> None:
        self._settings = settings
        self._handed = as_line(settings)
        self._folder = folder
        self._listener = listener
        self._engines = [EngineSlot(index, source) for index, source in enumerate(sources)]
        self._workers = [WorkerSlot(index) for index in range(settings.api_workers)]
        self._responses = BoundedStore()
        transport = AdapterTransport(self._send_to_engine, self._broadcast)
        self._adapters = AdapterRegistry(settings, served_names(settings, sources), transport)
        self._started_s = time.monotonic()
        self._substitute = SubstituteServer(listener, settings.ssl_certfile, settings.ssl_keyfile)
        self._watch = self._make_watch(plugins or {})
        self._stop = asyncio.Event()
        self._failure: Exception | None = None
        self._is_announced = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Returns after a clean stop. Raises UserError or EngineError when the start failed."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._note_signal)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        context = zmq.asyncio.Context()
        self._control = context.socket(zmq.ROUTER)
        self._control.setsockopt(zmq.LINGER, 0)
        self._control.bind(self._folder.control_address)
        self._spawn(self._listen())
        self._spawn(self._watch.run())
        for engine in self._engines:
            self._spawn(self._keep_engine(engine))
        for worker in self._workers:
            self._spawn(self._keep_worker(worker))
        await self._stop.wait()
        await self._shut_down()
        self._control.close()
        context.term()
        if self._failure is not None:
            raise self._failure

    def _make_watch(self, plugins: Mapping[str, Plugin]) -> HangWatch:
        """The watch over all engines and workers; plugins are the active ones, by name."""
        limits = HangLimits.of(self._settings.engine_hang_timeout, self._settings.engine_start_timeout)
        board = self._board = HeartbeatBoard(self._folder.heartbeats)
        self._slots: dict[EngineSlot | WorkerSlot, int] = {
            slot: board.engine_slot(slot.index) for slot in self._engines
        }
        self._slots |= {slot: board.worker_slot(slot.index) for slot in self._workers}
        watched = [
            Watched(slot.title, number, slot, self._folder.stack_file(slot.short_name))
            for slot, number in self._slots.items()
        ]
        return HangWatch(board, limits, watched, PluginFiles(plugins), self._follow_hangs)

    async def _follow_hangs(self) -> None:
        """Answer probes and requests with 503 while every worker hangs."""
        hung = {
            str(worker.index): str(vitals)
            for worker in self._workers
            if (vitals := self._board.read(self._slots[worker])).cause != WELL
        }
        await self._substitute.follow(hung, len(self._workers))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._note_end)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("supervisor task failed", exc_info=error)
            self._give_up(EngineError(f"the supervisor failed: {type(error).__name__}: {error}"))

    def _note_signal(self) -> None:
        """The first signal shuts down and lets requests in flight finish; a second one aborts those."""
        if self._stop.is_set():
            self._spawn(self._hurry())
        self._stop.set()

    def _reload(self) -> None:
        """Workers read certificates and the keys file again; one that starts now reads them anyway."""
        log.info("SIGHUP: server workers read certificates and the keys file again")
        for worker in self._workers:
            if worker.child is not None and worker.has_listened:
                worker.child.ask_to_reload()

    async def _hurry(self) -> None:
        await self._broadcast(Stop(grace_s=0.0))

    def _give_up(self, failure: Exception) -> None:
        if not self._stop.is_set():
            self._failure = failure
            self._stop.set()

    # ---- children

    async def _keep_engine(self, engine: EngineSlot) -> None:
        """Start an engine, and again whenever it dies."""
        while not self._stop.is_set():
            engine.generation += 1
            engine.failure = None
            engine.backoff.note_start()
            self._board.reset(self._slots[engine])
            arguments = (self._folder.path, engine.index, engine.generation)
            engine.child = await Child.start("plugserve.core.engine", arguments, self._handed)
            code = await engine.child.wait()
            if self._stop.is_set():
                return
            await _hear_last_words(engine, code)
            engine.child = None
            engine.info, engine.is_reachable = None, False
            self._adapters.note_engine_down(engine.source.name)
            await self._note_engine_death(engine, code)

    async def _note_engine_death(self, engine: EngineSlot, code: int) -> None:
        if not engine.num_ups:
            self._give_up(_start_error("engine", engine.failure, code))
            return
        reason = _reason(code) if engine.failure is None else engine.failure.message
        await self._broadcast(EngineDown(model=engine.source.name, state="dead", reason=reason))
        pause_s = engine.backoff.next_pause_s()
        log.error("engine died model=%s reason=%s restart_in_s=%.1f", engine.source.name, reason, pause_s)
        await asyncio.sleep(pause_s)

    async def _keep_worker(self, worker: WorkerSlot) -> None:
        """Start a server worker, and again whenever it dies."""
        descriptor = self._listener.fileno()
        while not self._stop.is_set():
            worker.failure = None
            worker.backoff.note_start()
            self._board.reset(self._slots[worker])
            arguments = (self._folder.path, worker.index, descriptor)
            worker.child = await Child.start("plugserve.server.worker", arguments, self._handed, pass_fds=[descriptor])
            code = await worker.child.wait()
            if self._stop.is_set():
                return
            await _hear_last_words(worker, code)
            identity = worker.identity
            worker.child = None
            self._adapters.note_heard(identity)
            if not worker.has_listened:
                self._give_up(_start_error("server worker", worker.failure, code))
                return
            for engine in self._engines:
                await self._send(engine.identity, WorkerGone(identity=identity))
            pause_s = worker.backoff.next_pause_s()
            reason = _reason(code) if worker.failure is None else worker.failure.message
            log.error("server worker died index=%d reason=%s restart_in_s=%.1f", worker.index, reason, pause_s)
            await asyncio.sleep(pause_s)

    # ---- messages

    async def _listen(self) -> None:
        while True:
            identity, payload = await self._control.recv_multipart()
            try:
                message = decode_to_supervisor(payload)
            except msgspec.DecodeError:
                log.exception("unreadable message ignored from=%r", identity)
                continue
            if isinstance(message, EngineReady):
                self._spawn(self._note_engine_up(identity, message.info))
            elif isinstance(message, StartFailed):
                self._note_failure(identity, message)
            elif isinstance(message, WorkerHello):
                await self._greet(identity)
            elif isinstance(message, WorkerReady):
                self._note_worker_ready(identity)
            elif isinstance(message, ResponseCall):
                await self._send(identity, self._responses.answer(message))
            elif isinstance(message, AdapterLoaded):
                self._adapters.note_loaded(message)
            elif isinstance(message, AdaptersNoted):
                self._adapters.note_heard(identity, message.version)
            elif isinstance(message, AdapterCall):
                self._spawn(self._answer_adapter_call(identity, message))

    async def _answer_adapter_call(self, identity: bytes, call: AdapterCall) -> None:
        await self._send(identity, await self._adapters.answer(call))

    def _note_failure(self, identity: bytes, message: StartFailed) -> None:
        for engine in self._engines:
            if engine.identity == identity:
                engine.failure = message
        for worker in self._workers:
            if worker.child is not None and worker.identity == identity:
                worker.failure = message

    async def _note_engine_up(self, identity: bytes, info: EngineInfo) -> None:
        for engine in self._engines:
            if engine.identity == identity and await self._bring_up_adapters(engine):
                engine.info = info
                if not engine.num_ups:
                    announce_engine(engine.source.name, info)
                else:
                    log.info("engine is back model=%s load_s=%.2f", engine.source.name, info.load_seconds)
                engine.num_ups += 1
                await self._broadcast(self._up(engine, info))

    async def _bring_up_adapters(self, engine: EngineSlot) -> bool:
        """Load a new engine's adapters before workers get its address. False when it died meanwhile, or when the start
        can't succeed."""
        generation, engine.is_reachable = engine.generation, True
        try:
            problem = await self._adapters.bring_up(engine.source.name, is_first=not engine.num_ups)
        except EngineUnavailableError:
            return False
        if problem:
            self._give_up(UserError(problem))
        return not problem and engine.is_reachable and engine.generation == generation

    def _up(self, engine: EngineSlot, info: EngineInfo) -> EngineUp:
        address = self._folder.engine_address(engine.index, engine.generation)
        return EngineUp(engine.source.name, address, info, num_restarts=engine.num_ups - 1)

    async def _greet(self, identity: bytes) -> None:
        """Send a new worker the state of every engine."""
        for worker in self._workers:
            if worker.child is not None and worker.identity == identity:
                worker.has_listened = True
        await self._send(identity, self._adapters.news)
        for engine in self._engines:
            if engine.info is not None:
                await self._send(identity, self._up(engine, engine.info))
            else:
                state = "dead" if engine.num_ups else "loading"
                await self._send(identity, EngineDown(model=engine.source.name, state=state, reason=state))

    def _note_worker_ready(self, identity: bytes) -> None:
        for worker in self._workers:
            if worker.child is not None and worker.identity == identity:
                worker.is_ready = True
        if not self._is_announced and all(worker.is_ready for worker in self._workers):
            self._is_announced = True
            address = self._listener.getsockname()
            announce_ready(self._settings, (address[0], address[1]), time.monotonic() - self._started_s)

    async def _send(self, identity: bytes, message: msgspec.Struct) -> None:
        await self._control.send_multipart([identity, encode(message)])

    async def _send_to_engine(self, model: str, message: msgspec.Struct) -> None:
        """Raises EngineUnavailableError where the model's engine is not running."""
        for engine in self._engines:
            if engine.source.name == model and engine.is_reachable:
                await self._send(engine.identity, message)
                return
        raise EngineUnavailableError(f"The engine of {model!r} is not up; try again in a moment.")

    async def _broadcast(self, message: msgspec.Struct) -> list[bytes]:
        """Send to every worker; returns the identities of those that listen."""
        running = [worker for worker in self._workers if worker.child is not None]
        for worker in running:
            await self._send(worker.identity, message)
        return [worker.identity for worker in running if worker.has_listened]

    # ---- the end

    async def _shut_down(self) -> None:
        """Workers first, so that requests in flight can finish; then engines."""
        grace_s = self._settings.shutdown_timeout if self._failure is None else 0.0
        log.info("stopping")
        self._substitute.stop()
        await self._broadcast(Stop(grace_s=grace_s))
        workers = [worker.child for worker in self._workers if worker.child is not None]
        await asyncio.gather(*(child.stop(grace_s + _WORKER_PATIENCE_S) for child in workers))
        for engine in self._engines:
            if engine.child is not None:
                await self._send(engine.identity, Stop())
        await asyncio.gather(
            *(
                engine.child.stop(_ENGINE_PATIENCE_S if engine.info is not None else 0.0)
                for engine in self._engines
                if engine.child is not None
            )
        )
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _hear_last_words(slot: EngineSlot | WorkerSlot, code: int) -> None:
    """The child's last message may still be in the socket when its exit is seen; a killed child sends none."""
    for _ in range(20):
        if code <= 0 or slot.failure is not None:
            return
        await asyncio.sleep(0.05)


def _start_error(what: str, failure: StartFailed | None, code: int) -> UserError | EngineError:
    """Why a first start failed: the child's message where it sent one."""
    if failure is None:
        return EngineError(f"the {what} did not start: {_reason(code)}; its log has the cause")
    return UserError(failure.message) if failure.is_user_error else EngineError(f"{what}: {failure.message}")


def _reason(code: int) -> str:
    """An exit code as text."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
