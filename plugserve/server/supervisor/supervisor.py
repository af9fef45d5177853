"""The parent process: starts engines and server workers, restarts processes that die, and shuts everything down in
order.

Torch-free. Holds the state that exists once a server: listening socket, models, adapters, stored responses.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Mapping

import msgspec

from plugserve.core.errors import EngineUnavailableError
from plugserve.core.plugin_system.plugin_loading import Plugin
from plugserve.core.settings.model_entries import by_every_name
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.handed_settings import as_line
from plugserve.core.wire.heartbeats import WELL, HangLimits, HeartbeatBoard
from plugserve.core.wire.load_board import LoadBoard
from plugserve.core.wire.messages import (
    ASIDE,
    AdapterCall,
    AdapterLoaded,
    AdaptersNoted,
    EngineReady,
    ModelCall,
    ModelReleased,
    ModelsUsed,
    ResponseCall,
    StartFailed,
    Stop,
    TextFailed,
    WantModel,
    WorkerGone,
    WorkerHello,
    WorkerReady,
    decode_to_supervisor,
)
from plugserve.core.wire.runtime_folder import RuntimeFolder
from plugserve.server.api.responses.response_store import BoundedStore
from plugserve.server.operations.service_manager import ServiceManager
from plugserve.server.operations.tracing.tracer import NullTracer, Tracer
from plugserve.server.supervisor.adapter_registry import AdapterRegistry, AdapterTransport
from plugserve.server.supervisor.children import Child
from plugserve.server.supervisor.control import Control
from plugserve.server.supervisor.engine_keeper import describe_exit, hear_last_words, start_error
from plugserve.server.supervisor.hang_watch import HangWatch, Watched
from plugserve.server.supervisor.hung_stack import PluginFiles
from plugserve.server.supervisor.model_calls import ModelCalls
from plugserve.server.supervisor.model_pool import ModelPool
from plugserve.server.supervisor.process_slots import EngineSlot, Replica, WorkerSlot
from plugserve.server.supervisor.ready_lines import ServerAddress, announce_ready, warn_of_open_server
from plugserve.server.supervisor.substitute_server import SubstituteServer

log = logging.getLogger(__name__)

_ENGINE_PATIENCE_S = 1.0
_WORKER_PATIENCE_S = 1.0


class Supervisor:
    """Runs until a signal, or until the first start of a process fails. listener is the bound socket that all workers
    share, engines one slot a model of the table, budget_bytes what models may take together."""

    def __init__(
        self,
        settings: Settings,
        engines: list[EngineSlot],
        folder: RuntimeFolder,
        listener: socket.socket,
        plugins: Mapping[str, Plugin] | None = None,
        *,
        budget_bytes: int,
        service: ServiceManager | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer if tracer is not None else NullTracer()
        self._service = service if service is not None else ServiceManager()
        self._settings = settings
        self._handed = as_line(settings)
        self._folder = folder
        self._listener = listener
        self._engines = engines
        for engine in engines:
            if engine.source is not None:
                folder.write_source(engine.index, engine.source)
        self._workers = [WorkerSlot(index) for index in range(settings.api_workers)]
        self._control = Control(self._workers)
        self._responses = BoundedStore()
        transport = AdapterTransport(self._send_to_engines, self._control.send, self._control.broadcast)
        self._adapters = AdapterRegistry(settings, by_every_name([engine.entry for engine in engines]), transport)
        self._board = HeartbeatBoard(folder.heartbeats)
        self._loads = LoadBoard(folder.loads, settings.api_workers) if settings.data_parallel_size > 1 else None
        self._watch = self._make_watch(plugins or {})
        self._pool = ModelPool(
            settings, folder, self._board, self._control, self._adapters, self._engines, budget_bytes, self._tracer
        )
        spare = list(range(len(self._engines), self._board.num_engines // settings.data_parallel_size))
        self._calls = ModelCalls(settings, self._pool, self._control, self._engines, spare, self._watch_engine)
        self._started_s = time.monotonic()
        self._substitute = SubstituteServer(
            listener, settings.ssl_certfile, settings.ssl_keyfile, root_path=settings.root_path
        )
        self._is_announced = False

    async def run(self) -> None:
        """Returns after a clean stop. Raises UserError or EngineError when the start failed."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._note_signal)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        control = self._control
        control.open(self._folder.control_address)
        control.spawn(self._listen())
        control.spawn(self._watch.run())
        control.spawn(self._pool.run())
        control.spawn(self._service.watch(self._is_well))
        for worker in self._workers:
            control.spawn(self._keep_worker(worker))
        await control.stopping.wait()
        await self._shut_down()
        if control.failure is not None:
            raise control.failure

    def _make_watch(self, plugins: Mapping[str, Plugin]) -> HangWatch:
        """The watch over all engines and workers; plugins are the active ones, by name."""
        limits = HangLimits.of(self._settings.engine_hang_timeout, self._settings.engine_start_timeout)
        watch = HangWatch(self._board, limits, PluginFiles(plugins), self._follow_hangs)
        for replica in self._replicas():
            watch.add(self._watched(replica, self._board.engine_slot(replica.index)))
        for worker in self._workers:
            watch.add(self._watched(worker, self._board.worker_slot(worker.index)))
        return watch

    def _replicas(self) -> list[Replica]:
        """The engines of all models."""
        return [replica for engine in self._engines for replica in engine.replicas]

    def _watched(self, slot: Replica | WorkerSlot, number: int) -> Watched:
        return Watched(slot.title, number, slot, self._folder.stack_file(slot.short_name))

    def _watch_engine(self, engine: EngineSlot) -> None:
        """Watch the engines of a model that has joined the table."""
        for replica in engine.replicas:
            self._watch.add(self._watched(replica, self._board.engine_slot(replica.index)))

    async def _follow_hangs(self) -> None:
        """Answer probes and requests with 503 while every worker hangs."""
        hung = {
            str(worker.index): str(vitals)
            for worker in self._workers
            if (vitals := self._board.worker(worker.index)).cause != WELL
        }
        await self._substitute.follow(hung, len(self._workers))

    def _is_well(self) -> bool:
        """No engine and no worker hangs. Those that have died are being replaced."""
        engines = (self._board.engine(replica.index) for replica in self._replicas())
        workers = (self._board.worker(worker.index) for worker in self._workers)
        return all(vitals.cause == WELL for vitals in (*engines, *workers))

    def _note_signal(self) -> None:
        """The first signal shuts down and lets requests in flight finish; a second one aborts those."""
        if self._control.stopping.is_set():
            self._control.spawn(self._hurry())
        self._control.stopping.set()

    def _reload(self) -> None:
        """Workers read certificates and the keys file again; one that starts now reads them anyway."""
        log.info("SIGHUP: server workers read certificates and the keys file again")
        self._service.reloading()
        for worker in self._workers:
            if worker.child is not None and worker.has_listened:
                worker.child.ask_to_reload()
        if self._is_announced:
            self._service.ready("serving")

    async def _hurry(self) -> None:
        await self._control.broadcast(Stop(grace_s=0.0))

    # ---- workers

    async def _keep_worker(self, worker: WorkerSlot) -> None:
        """Start a server worker, and again whenever it dies."""
        descriptor = self._listener.fileno()
        while not self._control.stopping.is_set():
            worker.failure = None
            worker.backoff.note_start()
            self._board.reset(self._board.worker_slot(worker.index))
            arguments = (self._folder.path, worker.index, descriptor)
            worker.child = await Child.start("plugserve.server.worker", arguments, self._handed, pass_fds=[descriptor])
            code = await worker.child.wait()
            if self._control.stopping.is_set():
                return
            await hear_last_words(worker, code)
            identity = worker.identity
            worker.child = None
            self._adapters.note_heard(identity)
            self._pool.note_worker_gone(identity)
            if not worker.has_listened:
                self._control.give_up(start_error("server worker", worker.failure, code))
                return
            if self._loads is not None:
                self._loads.forget_worker(worker.index)
            for replica in self._replicas():
                await self._control.send(replica.identity, WorkerGone(identity=identity))
            pause_s = worker.backoff.next_pause_s()
            reason = describe_exit(code) if worker.failure is None else worker.failure.message
            log.error("server worker died index=%d reason=%s restart_in_s=%.1f", worker.index, reason, pause_s)
            await asyncio.sleep(pause_s)

    # ---- messages

    async def _listen(self) -> None:
        while True:
            identity, payload = await self._control.receive()
            try:
                message = decode_to_supervisor(payload)
            except msgspec.DecodeError:
                log.exception("unreadable message ignored from=%r", identity)
                continue
            if isinstance(message, ResponseCall):
                await self._control.send(identity, self._responses.answer(message))
            elif not self._note_model_news(identity, message):
                await self._note_process_news(identity, message)

    def _note_model_news(self, identity: bytes, message: msgspec.Struct) -> bool:
        """Handle a message about models and adapters. False for any other."""
        spawn = self._control.spawn
        match message:
            case WantModel():
                self._pool.want(message.model)
            case ModelsUsed():
                self._pool.note_uses(identity, message.uses)
            case ModelReleased():
                self._pool.note_released(identity, message)
            case TextFailed():
                spawn(self._pool.note_text_failure(message.model, message.message))
            case ModelCall():
                spawn(self._answer_model_call(identity, message))
            case AdapterLoaded():
                self._adapters.note_loaded(identity, message)
            case AdaptersNoted():
                self._adapters.note_heard(identity, message.version)
            case AdapterCall():
                spawn(self._answer_adapter_call(identity, message))
            case _:
                return False
        return True

    async def _note_process_news(self, identity: bytes, message: msgspec.Struct) -> None:
        """Handle a message about the start of a process."""
        if isinstance(message, EngineReady):
            for replica in self._replicas():
                if replica.identity == identity:
                    self._control.spawn(self._pool.keeper.note_ready(replica, message.info))
        elif isinstance(message, StartFailed):
            self._note_failure(identity, message)
        elif isinstance(message, WorkerHello):
            await self._greet(identity)
        elif isinstance(message, WorkerReady):
            self._note_worker_ready(identity, message)

    async def _answer_adapter_call(self, identity: bytes, call: AdapterCall) -> None:
        await self._control.send(identity, await self._adapters.answer(call))

    async def _answer_model_call(self, identity: bytes, call: ModelCall) -> None:
        await self._control.send(identity, await self._calls.answer(call))

    def _note_failure(self, identity: bytes, message: StartFailed) -> None:
        identity = identity.removesuffix(ASIDE)
        for replica in self._replicas():
            if replica.identity == identity:
                replica.failure = message
        for worker in self._workers:
            if worker.child is not None and worker.identity == identity:
                worker.failure = message

    async def _greet(self, identity: bytes) -> None:
        """Send a new worker the state of every model."""
        for worker in self._workers:
            if worker.child is not None and worker.identity == identity:
                worker.has_listened = True
        await self._control.send(identity, self._adapters.news)
        await self._pool.greet(identity)

    def _note_worker_ready(self, identity: bytes, message: WorkerReady) -> None:
        for worker in self._workers:
            if worker.child is not None and worker.identity == identity:
                worker.is_ready = True
        if not self._is_announced and all(worker.is_ready for worker in self._workers):
            self._is_announced = True
            name, needs_key = self._listener.getsockname(), message.needs_key
            address = ServerAddress.of(self._settings, name, needs_key=needs_key)
            seconds = time.monotonic() - self._started_s
            if not message.is_guarded:
                warn_of_open_server(address)
            announce_ready(
                address,
                seconds,
                model=message.model,
                example=message.example,
                has_page=self._settings.ui,
                has_open_docs=True,
            )
            self._service.ready(f"serving on {address.url}")

    async def _send_to_engines(self, model: str, message: msgspec.Struct) -> list[bytes]:
        """Send to all engines of a model; returns their identities. Raises EngineUnavailableError where none runs."""
        engine = self._pool.find(model)
        reachable = [one.identity for one in engine.replicas if one.is_reachable] if engine is not None else []
        if not reachable:
            raise EngineUnavailableError(
                f"The engine of {model!r} is not up; load the model, or try again in a moment."
            )
        for identity in reachable:
            await self._control.send(identity, message)
        return reachable

    # ---- the end

    async def _shut_down(self) -> None:
        """Workers first, so that requests in flight can finish; then engines."""
        grace_s = self._settings.shutdown_timeout if self._control.failure is None else 0.0
        log.info("stopping")
        self._service.stopping()
        self._substitute.stop()
        self._calls.close()
        await self._control.broadcast(Stop(grace_s=grace_s))
        workers = [worker.child for worker in self._workers if worker.child is not None]
        await asyncio.gather(*(child.stop(grace_s + _WORKER_PATIENCE_S) for child in workers))
        running = [replica for replica in self._replicas() if replica.child is not None]
        for replica in running:
            await self._control.send(replica.identity, Stop())
        await asyncio.gather(
            *(
                replica.child.stop(_ENGINE_PATIENCE_S if replica.info is not None else 0.0)
                for replica in running
                if replica.child is not None
            )
        )
        await self._control.close()
        await asyncio.to_thread(self._tracer.shutdown)
