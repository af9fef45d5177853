"""The engine's process: loads plugins and the model, serves until it is stopped, and shuts down."""

from __future__ import annotations

import gc
import logging
import threading
import time
from pathlib import Path

import zmq
from msgspec.structs import replace

from plugserve.core.contracts.encoding import EncoderRunner
from plugserve.core.contracts.engine_facts import EngineInfo, EngineStats
from plugserve.core.contracts.executor import OnEnd, RankEnd
from plugserve.core.contracts.runner import LoadStage, ModelRunner
from plugserve.core.contracts.weights import ModelSource
from plugserve.core.engine.build import EngineBuilder, engine_info
from plugserve.core.engine.encoder_build import EncoderBuilder
from plugserve.core.engine.loop import EngineLoop
from plugserve.core.engine.memory_check import MemoryCheck, check_together
from plugserve.core.engine.own_devices import take_own_devices
from plugserve.core.engine.ranks.rank_group import end_this_process
from plugserve.core.engine.serving_engine import ServingEngine
from plugserve.core.engine.throughput_log import NoThroughputLog, ThroughputLog
from plugserve.core.errors import UserError
from plugserve.core.metrics.metric_store import MetricStore
from plugserve.core.model_files.encoder_files import GENERATE
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.log_file import log_file_of
from plugserve.core.settings.log_setup import set_up_logging
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.heartbeats import HangLimits, HeartbeatBoard, Pulse
from plugserve.core.wire.messages import ASIDE, EngineReady, StartFailed, encode
from plugserve.core.wire.runtime_folder import RuntimeFolder
from plugserve.core.wire.stack_dump import write_stacks_to

log = logging.getLogger(__name__)

_REPORTING_S = 0.5  # until the last message has left a process that ends itself


class LocalEngineHandle:
    """The plugserve.EngineHandle of this process's engine, for the life-cycle hooks."""

    def __init__(self, model: str, info: EngineInfo, engine: ServingEngine) -> None:
        self.model = model
        self.info = info
        self._engine = engine

    def stats(self) -> EngineStats:
        return self._engine.snapshot()


class EngineProcess:
    """Run an engine's process: load, serve, shut down."""

    def __init__(
        self, folder: RuntimeFolder, settings: Settings, model_index: int, replica: int, generation: int
    ) -> None:
        self._started_s = time.monotonic()
        self._is_serving = False
        self._reporting = threading.Lock()
        self._settings = settings
        self._folder = folder
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        index = self._index = model_index * settings.data_parallel_size + replica
        self._identity = f"engine:{index}:{generation}".encode()
        self._control = self._dealer(self._identity)
        self._address = folder.engine_address(index, generation)
        self._model_index, self._replica = model_index, replica
        self._is_first_of_several = generation == 1 and replica == 0 and settings.data_parallel_size > 1

    def _dealer(self, identity: bytes) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, identity)
        socket.setsockopt(zmq.LINGER, 1000)
        socket.connect(self._folder.control_address)
        return socket

    def run(self) -> int:
        """Exit code: 0 after Stop, 2 for the user's fault, 1 for the engine's."""
        try:
            settings = self._settings
            self._pulse = self._begin_pulse(settings)
            set_up_logging(settings.log_level, settings.log_format, log_file_of(settings))
            source = self._folder.read_source(self._model_index)
            take_own_devices(settings, self._replica)
            self._serve(settings, source)
        except UserError as error:
            self._report(StartFailed(message=str(error), is_user_error=True))
            return 2
        except Exception as error:
            log.exception("engine failed")
            self._report(StartFailed(message=f"{type(error).__name__}: {error}", is_user_error=False))
            return 1
        return 0

    def _begin_pulse(self, settings: Settings) -> Pulse:
        """Start heartbeats and stack dumps, by which the supervisor watches this process."""
        write_stacks_to(self._folder.stack_file(f"engine-{self._index}"))
        board = HeartbeatBoard(self._folder.heartbeats)
        limits = HangLimits.of(settings.engine_hang_timeout, settings.engine_start_timeout)
        pulse = board.pulse(board.engine_slot(self._index), limits)
        pulse.begin()
        return pulse

    def _serve(self, settings: Settings, source: ModelSource) -> None:
        host = PluginHost.load(settings.selection())
        host.configure(settings, MetricStore(self._folder.metrics / f"engine-{self._index}"))
        if self._is_first_of_several:
            check_together(MemoryCheck(settings, host, source), settings.data_parallel_size * settings.num_ranks)
        flight_path = self._folder.flight_file(self._index)
        builder = builder_of(settings, host, source, self._pulse, self._end_with_rank, flight_path)
        configured_s = time.monotonic()
        engine, runner, facts = builder.build()
        own = [LoadStage("load plugins", self._started_s, configured_s)]
        built = [LoadStage("load model", configured_s, time.monotonic())]
        facts = replace(facts, load_stages=own + (facts.load_stages or built))
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
        self._is_serving = True
        EngineLoop(
            engine, socket, self._control, builder.read_adapter, self._pulse, self._throughput(engine, source.name)
        ).run()
        self._pulse.leave()
        host.observe("plugserve_engine_stopping", engine=handle)
        self._leave(engine, runner, socket)

    def _throughput(self, engine: ServingEngine, model: str) -> ThroughputLog | NoThroughputLog:
        if self._settings.disable_log_stats:
            return NoThroughputLog()
        return ThroughputLog(model, engine.snapshot, time.monotonic())

    def _leave(self, engine: ServingEngine, runner: ModelRunner | EncoderRunner, socket: zmq.Socket[bytes]) -> None:
        engine.drain()
        engine.step_time.flush()
        runner.close()
        socket.close()

    def _end_with_rank(self, rank: int, end: RankEnd) -> None:
        """On a thread of its own: this process may wait for the lost rank for ever. The supervisor starts the engine
        again, or reports why it can't start."""
        if self._is_serving:
            self._report_aside(StartFailed(message=end.message, is_user_error=False))
        else:
            self._report(StartFailed(message=end.message, is_user_error=end.is_user_error))
            time.sleep(_REPORTING_S)
        end_this_process(rank, end)

    def _report_aside(self, message: StartFailed) -> None:
        """Report on a connection of its own: the engine's loop uses the other one."""
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        with context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.IDENTITY, self._identity + ASIDE)
            socket.setsockopt(zmq.LINGER, 1000)
            socket.connect(self._folder.control_address)
            socket.send(encode(message))
        context.term()  # waits until the message has left

    def _report(self, message: EngineReady | StartFailed) -> None:
        with self._reporting:
            self._control.send(encode(message))

    def close(self) -> None:
        self._control.close()
        self._context.term()


def builder_of(
    settings: Settings,
    host: PluginHost,
    source: ModelSource,
    pulse: Pulse | None = None,
    on_rank_end: OnEnd = end_this_process,
    flight_path: Path | None = None,
) -> EngineBuilder | EncoderBuilder:
    """The builder of the engine that a model of this kind needs."""
    if source.task != GENERATE:
        return EncoderBuilder(settings, host, source, pulse, flight_path)
    return EngineBuilder(settings, host, source, pulse, on_rank_end, flight_path)
