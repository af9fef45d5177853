"""A server in this process, without HTTP: a worker's state on an event loop in a thread, and its engines in threads.

Requests take the path of requests over HTTP (server/pipeline), so that texts, limits and errors are the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import Any, Final, TypeVar

import msgspec
import zmq
import zmq.asyncio

import plugserve
from plugserve.core.errors import ConfigError, EngineUnavailableError, UserError
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.model_entries import by_every_name, settings_of
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.messages import AdapterLoaded, Adapters, Stop, decode_to_supervisor, encode
from plugserve.offline.engine_thread import EngineThread
from plugserve.server.operations.metrics import Metrics
from plugserve.server.operations.service_limits import service_limits
from plugserve.server.pipeline.answer_settings import answer_settings
from plugserve.server.pipeline.direct import DirectRequests
from plugserve.server.pipeline.request_seeds import RequestSeeds
from plugserve.server.supervisor.adapter_registry import AdapterRegistry, AdapterTransport
from plugserve.server.supervisor.model_table import ModelTable
from plugserve.server.worker.adapter_models import served_adapters
from plugserve.server.worker.engine_client import ZmqEngineClient
from plugserve.server.worker.served_models import ServedModels, served_model
from plugserve.server.worker.server_state import ServerState
from plugserve.server.worker.text_sides import load_text_side

log = logging.getLogger(__name__)

_IDENTITY: Final = b"local"
_STOP_S: Final = 5.0
_SIGNAL_S: Final = 0.5  # a signal that another thread got is noticed when this one wakes
_ANYWHERE: Final = "/"  # whoever runs this process may read any adapter
Result = TypeVar("Result")


class LocalServer:
    """Made by start, ended by close. Its attributes belong to the event loop: use them in coroutines given to run."""

    def __init__(self, settings: Settings, host: PluginHost, table: ModelTable) -> None:
        self._settings = settings
        self._host = host
        self._entries = [entry for entry in table.entries if entry.is_preloaded]
        self._sources = table.preloaded
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="plugserve", daemon=True)
        self._context = zmq.asyncio.Context()
        self._clients: list[ZmqEngineClient] = []
        self._models = ServedModels()
        self._engines: list[EngineThread] = []
        self._controls: dict[str, zmq.asyncio.Socket] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._is_closed = False

    @classmethod
    def start(cls, settings: Settings, host: PluginHost, table: ModelTable) -> LocalServer:
        """Load every model that loads at the start. Raises UserError, or what an engine's start raised."""
        if settings.data_parallel_size > 1:
            raise ConfigError(
                f"data_parallel_size={settings.data_parallel_size}: a program's own process runs one engine a model; "
                "use 1, or start a server (plugserve --data-parallel-size)"
            )
        server = cls(settings, host, table)
        server._thread.start()
        try:
            server.run(server._open())
        except BaseException:
            server.close()
            raise
        return server

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run work on the event loop and wait for it. An interrupt cancels it and is raised."""
        if self._is_closed:
            work.close()
            raise EngineUnavailableError("This engine is closed; make another one.")
        future = self.submit(work)
        try:
            while not wait([future], _SIGNAL_S).done:
                pass
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def submit(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """End engines, child processes and threads. Requests that run are aborted. Safe to call twice."""
        if self._is_closed:
            return
        self._is_closed = True
        self.submit(self._end_requests()).result()
        num_ended = sum(engine.join() for engine in self._engines)
        self.submit(self._close_sockets(num_ended == len(self._engines))).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # ---- start

    async def _open(self) -> None:
        self._clients = [ZmqEngineClient(source.name, self._context, _IDENTITY) for source in self._sources]
        models = self._models = ServedModels(
            served_model(entry, client, index)
            for index, (entry, client) in enumerate(zip(self._entries, self._clients, strict=True))
        )
        limits = replace(service_limits(self._settings), trusts_templates=True)
        self.state = ServerState(
            models=models,
            hooks=self._host,
            version=plugserve.__version__,
            max_logprobs=self._settings.max_logprobs,
            metrics=Metrics(),
            limits=limits,
            seeds=RequestSeeds(self._settings.seed),
            answers=answer_settings(self._settings),
        )
        self.requests = DirectRequests(self.state)
        registry = self._settings.model_copy(update={"lora_dir": _ANYWHERE})
        transport = AdapterTransport(self._to_engine, self._to_one, self._to_workers)
        self.adapters = AdapterRegistry(registry, by_every_name(self._entries), transport)
        loading = [self._start_engine(index, client) for index, client in enumerate(self._clients)]
        for index, model in enumerate(models):
            model.text = await load_text_side(self._sources[index], self._settings_of(index), self._host)
        for client, engine in zip(self._clients, loading, strict=True):
            client.connect([engine.address], await asyncio.wrap_future(engine.info))
            if problem := await self.adapters.bring_up(client.model, client.model.encode(), is_first=True):
                raise UserError(problem)
        await self._to_workers(self.adapters.news)

    def _settings_of(self, index: int) -> Settings:
        return settings_of(self._settings, self._entries[index])

    def _start_engine(self, index: int, client: ZmqEngineClient) -> EngineThread:
        def note_death(reason: str) -> None:
            """Called in the engine's thread."""
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(client.disconnect, "dead", reason)

        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.shadow(self._context.underlying)
        engine = EngineThread(self._settings_of(index), self._host, self._sources[index], context, index, note_death)
        control = self._controls[client.model] = self._context.socket(zmq.PAIR)
        control.bind(engine.control_address)
        self._tasks.append(asyncio.create_task(self._follow(client.model, control)))
        self._engines.append(engine)
        engine.start()
        return engine

    # ---- adapters

    async def _follow(self, model: str, control: zmq.asyncio.Socket) -> None:
        while True:
            message = decode_to_supervisor(await control.recv())
            if isinstance(message, AdapterLoaded):
                self.adapters.note_loaded(model.encode(), message)

    async def _to_engine(self, model: str, message: msgspec.Struct) -> list[bytes]:
        """An engine's identity is its model's name here."""
        await self._to_one(model.encode(), message)
        return [model.encode()]

    async def _to_one(self, engine: bytes, message: msgspec.Struct) -> None:
        await self._controls[engine.decode()].send(encode(message))

    async def _to_workers(self, message: msgspec.Struct) -> list[bytes]:
        """This process is the only worker, and notes the list at once."""
        if isinstance(message, Adapters):
            self.state.models.adapters = served_adapters(self.state.models, message.adapters)
        return []

    # ---- end

    async def _end_requests(self) -> None:
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for client in self._clients:
            await client.close()
        for model in self._models:
            if model.text is not None:
                await model.text.close()
        for engine, control in zip(self._engines, self._controls.values(), strict=True):
            if engine.takes_stop:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_STOP_S):  # the thread may just be ending
                        await control.send(encode(Stop()))

    async def _close_sockets(self, are_engines_ended: bool) -> None:
        for control in self._controls.values():
            control.close(linger=0)
        if are_engines_ended:
            self._context.term()
