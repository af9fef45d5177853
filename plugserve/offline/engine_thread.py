"""An engine in a thread of this process.

The thread runs the loop of an engine process; messages are the same, over ZMQ's transport within a process.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import zmq

from plugserve.core.contracts.engine_facts import EngineInfo
from plugserve.core.contracts.weights import ModelSource
from plugserve.core.engine.build import engine_info
from plugserve.core.engine.engine_process import LocalEngineHandle, builder_of
from plugserve.core.engine.loop import EngineLoop
from plugserve.core.errors import one_line
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings import Settings

log = logging.getLogger(__name__)


class EngineThread:
    """Serves one model at address until stop. control_address is bound by the owner, who sends Stop and adapters there
    and gets AdapterLoaded. info is the loaded engine's facts, or the exception that ended the start; note_death is
    called in the engine's thread if the engine fails later."""

    def __init__(
        self,
        settings: Settings,
        host: PluginHost,
        source: ModelSource,
        context: zmq.Context[zmq.Socket[bytes]],
        index: int,
        note_death: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._host = host
        self._source = source
        self._context = context
        self._note_death = note_death
        self.address = f"inproc://engine-{index}"
        self.control_address = f"inproc://control-{index}"
        self.info: Future[EngineInfo] = Future()
        self._thread = threading.Thread(target=self._run, name=f"engine-{index}", daemon=True)

    def start(self) -> None:
        """Load in the background. The owner has bound control_address."""
        self._thread.start()

    @property
    def is_loading(self) -> bool:
        """Until it has loaded or failed, an engine can't be stopped."""
        return not self.info.done()

    @property
    def takes_stop(self) -> bool:
        """The loop runs."""
        return self._thread.is_alive() and not self.is_loading

    def join(self) -> bool:
        """Wait for the end, once Stop has been sent. False for an engine that still loads: it ends with the process."""
        if self.is_loading:
            return False
        self._thread.join()
        return True

    def _run(self) -> None:
        control = self._context.socket(zmq.PAIR)
        control.connect(self.control_address)
        socket = self._context.socket(zmq.ROUTER)
        try:
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.bind(self.address)
            self._serve(socket, control)
        except BaseException as error:
            if self.info.done():
                log.exception("engine failed model=%s", self._source.name)
                self._note_death(one_line(error))
            else:
                self.info.set_exception(error)
        finally:
            socket.close(linger=0)
            control.close(linger=0)

    def _serve(self, socket: zmq.Socket[bytes], control: zmq.Socket[bytes]) -> None:
        started_s = time.monotonic()
        builder = builder_of(self._settings, self._host, self._source)
        engine, runner, facts = builder.build()
        try:
            info = engine_info(facts, builder.slots, time.monotonic() - started_s, builder.cache_salt)
            handle = LocalEngineHandle(self._source.name, info, engine)
            self._host.observe("plugserve_engine_started", engine=handle)
            self.info.set_result(info)
            EngineLoop(engine, socket, control, builder.read_adapter).run()
            self._host.observe("plugserve_engine_stopping", engine=handle)
            engine.drain()
            engine.step_time.flush()
        finally:
            runner.close()
