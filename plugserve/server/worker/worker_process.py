"""Serves the app on the inherited socket, follows the supervisor's messages, and shuts down in order.

Import it only after PROMETHEUS_MULTIPROC_DIR is set (worker.py does).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq
import zmq.asyncio

import plugserve
from plugserve.core.errors import UserError
from plugserve.core.metrics.metric_store import MetricStore
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.model_entries import ModelEntry, settings_of
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.heartbeats import HangLimits, HeartbeatBoard
from plugserve.core.wire.load_board import LoadBoard
from plugserve.core.wire.messages import (
    AdapterReply,
    Adapters,
    AdaptersNoted,
    EngineDown,
    EngineUp,
    ResponseReply,
    StartFailed,
    Stop,
    WorkerHello,
    WorkerReady,
    decode_to_worker,
    encode,
)
from plugserve.core.wire.runtime_folder import RuntimeFolder
from plugserve.core.wire.stack_dump import write_stacks_to
from plugserve.server.api.responses.response_store import ControlResponseStore
from plugserve.server.batches.service import batch_service
from plugserve.server.operations.access import access_of
from plugserve.server.operations.live_sources import FolderSources
from plugserve.server.operations.liveness import BoardLiveness
from plugserve.server.operations.metrics import Metrics
from plugserve.server.operations.objectives import Objectives
from plugserve.server.operations.observers import NullTraceRecorder, TraceRecorder
from plugserve.server.operations.service_limits import service_limits
from plugserve.server.operations.tls import tls_context
from plugserve.server.operations.trace_recorder import FileTraceRecorder
from plugserve.server.operations.tracing.make_tracer import make_tracer
from plugserve.server.operations.worker_notes import OwnNotes
from plugserve.server.pipeline.answer_settings import answer_settings
from plugserve.server.pipeline.request_seeds import RequestSeeds
from plugserve.server.worker.adapter_models import ControlAdapters, served_adapters
from plugserve.server.worker.app import build_app
from plugserve.server.worker.engine_client import ZmqEngineClient
from plugserve.server.worker.http.connection_limits import connection_limits
from plugserve.server.worker.http.event_loop import loop_factory
from plugserve.server.worker.http.http_server import HttpServer
from plugserve.server.worker.model_control import ModelControl
from plugserve.server.worker.reload import reload_files
from plugserve.server.worker.replicated_client import ReplicatedClient
from plugserve.server.worker.served_models import ServedEngine, ServedModel, ServedModels, TextSide, served_model
from plugserve.server.worker.server_state import ServerState
from plugserve.server.worker.text_sides import load_text_side, load_text_side_apart

logger = logging.getLogger(__name__)

_HEARTBEAT_S: Final = 0.5
_LAST_ANSWERS_S: Final = 0.5
_LAST_WORDS_MS: Final = 1000  # for the message with the cause of a failed start to reach the supervisor


def run_worker(folder: RuntimeFolder, settings: Settings, *, worker_index: int, listen_descriptor: int) -> None:
    """Serve until the supervisor sends Stop or the process gets a signal. Raises UserError for faults that the user can
    fix."""
    host = PluginHost.load(settings.selection())
    store = MetricStore(folder.metrics / f"worker-{worker_index}")
    host.configure(settings, store)
    listener = socket.socket(fileno=listen_descriptor)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(WorkerProcess(folder, settings, host, worker_index, store).serve(listener))


class WorkerProcess:
    """One worker's objects and tasks."""

    def __init__(
        self, folder: RuntimeFolder, settings: Settings, host: PluginHost, index: int, store: MetricStore
    ) -> None:
        objectives = Objectives.of(settings.goodput)
        self._metrics = Metrics(store, folder.metrics, objectives, plugserve.__version__)
        self._settings = settings
        self._folder = folder
        self._entries = folder.read_entries()
        self._control_address = folder.control_address
        self._recorder = _recorder(settings, folder)
        self._files_root = Path(settings.files_dir) if settings.files_dir is not None else folder.path / "files"
        self._host = host
        self._board = HeartbeatBoard(folder.heartbeats)
        limits = HangLimits.of(settings.engine_hang_timeout, settings.engine_start_timeout)
        self._pulse = self._board.pulse(self._board.worker_slot(index), limits)
        write_stacks_to(folder.stack_file(f"worker-{index}"))
        self._pulse.begin()
        self._index = index
        self._identity = f"worker:{index}:{os.getpid()}".encode()
        self._context = zmq.asyncio.Context()
        self._loads = LoadBoard(folder.loads, settings.api_workers) if settings.data_parallel_size > 1 else None
        self._entry_of: dict[ServedModel, ModelEntry] = {}
        self._models = ServedModels(
            (self._make_model(index, entry) for index, entry in enumerate(self._entries)),
            requires_name=settings.require_model,
        )
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._grace_s = settings.shutdown_timeout
        self._is_announced = False
        self._has_started = False
        self._unreported = {entry.name for entry in self._entries}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    async def serve(self, listener: socket.socket) -> None:
        """Serve from listening to shutdown. Raises the error that ended the worker."""
        self._tracer = make_tracer(self._settings, os.environ, part=f"worker-{self._index}")
        self._responses = ControlResponseStore(self._ask_supervisor)
        self._adapters = ControlAdapters(self._ask_supervisor) if self._host.names("lora_managers") else None
        self._model_control = ModelControl(
            self._models, self._ask_supervisor, self._load_text, self._make_model, self._settings.model_load_timeout
        )
        self._state = ServerState(
            models=self._models,
            hooks=self._host,
            version=plugserve.__version__,
            max_logprobs=self._settings.max_logprobs,
            metrics=self._metrics,
            tracer=self._tracer,
            access=access_of(self._settings),
            limits=service_limits(self._settings),
            responses=self._responses,
            recorder=self._recorder,
            adapters=self._adapters,
            liveness=BoardLiveness(
                self._board, lambda: {one.name: self._engines_of(one.index) for one in self._models}
            ),
            model_control=self._model_control,
            seeds=RequestSeeds(self._settings.seed, self._index),
            answers=answer_settings(self._settings),
            root_path=self._settings.root_path,
            serves_page=self._settings.ui,
            live=self._live_sources(),
        )
        self._batches = self._state.batches = batch_service(self._state, self._settings, self._files_root)
        self._state.started.clear()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._ask_to_stop, self._settings.shutdown_timeout)
        self._control = self._context.socket(zmq.DEALER)
        self._control.setsockopt(zmq.IDENTITY, self._identity)
        self._control.setsockopt(zmq.LINGER, 500)
        self._control.connect(self._control_address)
        try:
            server = await self._start_http(listener)
        except Exception as error:
            await self._report(error)
            self._context.destroy(linger=_LAST_WORDS_MS)
            raise
        self._spawn(self._beat())
        self._spawn(self._tell())
        self._spawn(self._follow_supervisor())
        self._spawn(self._load_text_sides())
        self._spawn(self._model_control.report_uses())
        await self._stop.wait()
        if self._failure is not None:
            await self._report(self._failure)
        await self._leave(server)
        if self._failure is not None:
            self._context.destroy(linger=_LAST_WORDS_MS)
            raise self._failure

    def _live_sources(self) -> FolderSources:
        own = OwnNotes(self._index, self._folder.worker_notes(self._index))
        settings = self._settings
        return FolderSources(self._folder, own, settings.api_workers, settings.data_parallel_size)

    async def _beat(self) -> None:
        """Write heartbeats of the event loop into shared memory."""
        while True:
            self._pulse.beat()
            await asyncio.sleep(_HEARTBEAT_S)

    async def _tell(self) -> None:
        """Write this worker's notes, which other workers read for the live feed."""
        while True:
            await asyncio.to_thread(self._state.live.own.write, self._state.notes())
            await asyncio.sleep(_HEARTBEAT_S)

    async def _report(self, error: BaseException) -> None:
        """Send the supervisor the reason why this worker leaves."""
        is_user_error = isinstance(error, UserError)
        message = str(error) if is_user_error else f"{type(error).__name__}: {error}"
        await self._control.send(encode(StartFailed(message=message, is_user_error=is_user_error)))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._note_end)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error
            self._ask_to_stop(0.0)

    def _ask_to_stop(self, grace_s: float) -> None:
        """A second request to stop aborts the requests in flight."""
        if self._stop.is_set() and grace_s == 0:
            self._hurry.set()
        elif not self._stop.is_set():
            self._grace_s = grace_s
            self._stop.set()

    # ---- start

    async def _start_http(self, listener: socket.socket) -> HttpServer:
        app = build_app(self._state)
        engines = {model.client.model: ServedEngine(model.client) for model in self._models}
        self._host.start("plugserve_register_routes", app=app, engines=engines)
        server = HttpServer(
            app,
            listener,
            limits=connection_limits(self._settings),
            tls=tls_context(self._settings),
            root_path=self._settings.root_path,
            on_turned_away=self._state.metrics.connection_refused,
        )
        await server.start()
        reload = partial(reload_files, self._settings, self._state.access, server)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        return server

    async def _load_text_sides(self) -> None:
        """Load the tokenizers of models that load at the start in a thread, while /health shows "loading"; then send
        the supervisor WorkerHello."""
        for model, entry in zip(self._models, self._entries, strict=True):
            if entry.is_preloaded:
                model.text = await self._load_text(model)
        self._has_started = True
        gc.collect()
        gc.freeze()  # tokenizers and modules live on: exclude them from garbage collection
        await self._control.send(encode(WorkerHello(pid=os.getpid())))
        await self._batches.resume()
        await self._announce_when_ready()

    def _make_model(self, index: int, entry: ModelEntry) -> ServedModel:
        """The model of an entry of the table, without its text side, and not connected to its engines."""
        model = served_model(entry, self._make_client(index, entry), index)
        self._entry_of[model] = entry
        return model

    def _engines_of(self, model_index: int) -> range:
        """The indices of a model's engines."""
        first = model_index * self._settings.data_parallel_size
        return range(first, first + self._settings.data_parallel_size)

    def _make_client(self, model_index: int, entry: ModelEntry) -> ZmqEngineClient | ReplicatedClient:
        loads = self._loads
        if loads is None:
            return ZmqEngineClient(entry.name, self._context, self._identity)
        engines = self._engines_of(model_index)
        clients = [
            ZmqEngineClient(entry.name, self._context, self._identity, partial(loads.note, index, self._index))
            for index in engines
        ]
        return ReplicatedClient(entry.name, clients, lambda place: loads.load(engines[place]))

    async def _load_text(self, model: ServedModel) -> TextSide:
        source = await asyncio.to_thread(self._folder.read_source, model.index)
        settings = settings_of(self._settings, self._entry_of[model])
        if not self._has_started:
            return await load_text_side(source, settings, self._host)
        json_file = self._folder.tokenizer_file(self._index, model.index)
        return await load_text_side_apart(source, settings, self._host, json_file)

    def _warn_of_vocabularies(self) -> None:
        """One line for a model whose tokenizer has more tokens than its weights, by the first worker."""
        for model in self._models if self._index == 0 else ():
            if model.vocabulary_fault:
                logger.warning("%s", model.vocabulary_fault)

    async def _announce_when_ready(self) -> None:
        if not self._is_announced and self._models.state == "ok":
            self._is_announced = True
            self._warn_of_vocabularies()
            await self._control.send(encode(self._ready_message()))

    def _ready_message(self) -> WorkerReady:
        """With what a first request may ask the first model for."""
        needs_key = self._state.access.has_keys
        is_guarded = needs_key or self._host.implements("plugserve_authorize")
        ready = WorkerReady(self._models.default_name, needs_key=needs_key, is_guarded=is_guarded)
        first = next(iter(self._models), None)
        if first is None or first.text is None or first.client.info is None:
            return ready
        if first.client.info.task != "generate":
            ready.example = "embeddings" if first.client.info.task == "embed" else "models"
        elif first.text.template is None or not first.text.template.is_given:
            ready.example = "completions"
        return ready

    # ---- the supervisor's messages

    async def _ask_supervisor(self, call: msgspec.Struct) -> None:
        await self._control.send(encode(call))

    async def _follow_supervisor(self) -> None:
        while True:
            frames = await self._control.recv_multipart()
            try:
                message = decode_to_worker(frames[-1])
            except msgspec.DecodeError:
                logger.exception("unreadable message from the supervisor ignored")
                continue
            if isinstance(message, Stop):
                self._ask_to_stop(message.grace_s)
            elif isinstance(message, ResponseReply):
                self._responses.note(message)
            elif isinstance(message, AdapterReply):
                if self._adapters is not None:
                    self._adapters.note(message)
            elif isinstance(message, Adapters):
                self._models.adapters = served_adapters(self._models, message.adapters)
                await self._control.send(encode(AdaptersNoted(message.version)))
            else:
                await self._model_control.note(message)
                self._note_first_news(message)
                await self._announce_when_ready()

    def _note_first_news(self, message: msgspec.Struct) -> None:
        """Requests wait for a moment until the state of each model is known."""
        if isinstance(message, EngineUp | EngineDown):
            self._unreported.discard(message.model)
            if not self._unreported:
                self._state.started.set()

    # ---- end

    async def _leave(self, server: HttpServer) -> None:
        """Let requests in flight run for grace_s, fail the others, close everything."""
        await self._batches.stop()
        await self._grace()
        for model in self._models:
            model.client.abort_all()
        await self._state.drain(_LAST_ANSWERS_S)
        self._pulse.leave()
        server.stop_accepting()
        await server.close_connections()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._model_control.close()
        for model in self._models:
            if model.text is not None:
                await model.text.close()
            await model.client.close()
        self._control.close()
        await asyncio.to_thread(self._tracer.shutdown)

    async def _grace(self) -> None:
        drained = asyncio.create_task(self._state.drain(self._grace_s))
        hurried = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({drained, hurried}, return_when=asyncio.FIRST_COMPLETED)
        for task in (drained, hurried):
            task.cancel()
        await asyncio.gather(drained, hurried, return_exceptions=True)


def _recorder(settings: Settings, folder: RuntimeFolder) -> TraceRecorder:
    if settings.record_trace is None:
        return NullTraceRecorder()
    return FileTraceRecorder(settings.record_trace, folder.read_trace_key())
