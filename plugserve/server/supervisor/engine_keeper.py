"""Starts engines, starts those again that die, and stops them."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable

from plugserve.core.contracts.engine_facts import EngineInfo
from plugserve.core.errors import EngineError, EngineUnavailableError, UserError
from plugserve.core.memory.ledger_text import summary
from plugserve.core.memory.machine import num_oom_kills
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.handed_settings import as_line
from plugserve.core.wire.heartbeats import HeartbeatBoard
from plugserve.core.wire.messages import StartFailed, Stop
from plugserve.core.wire.runtime_folder import RuntimeFolder
from plugserve.server.supervisor.adapter_registry import AdapterRegistry
from plugserve.server.supervisor.children import Child
from plugserve.server.supervisor.control import Control
from plugserve.server.supervisor.kept_flights import KeptFlights
from plugserve.server.supervisor.process_slots import EngineSlot, ModelState, Replica, WorkerSlot

log = logging.getLogger(__name__)

_STOP_S = 5.0


class EngineKeeper:
    """on_up is awaited when an engine answers and has its adapters; while a model loads, when the last of its engines
    does. on_fewer: one has died, and others of its model take requests; on_lost: an engine of a model that was up can't
    be started again."""

    def __init__(
        self,
        folder: RuntimeFolder,
        board: HeartbeatBoard,
        control: Control,
        adapters: AdapterRegistry,
        on_up: Callable[[EngineSlot, Replica, EngineInfo], Awaitable[None]],
        on_fewer: Callable[[EngineSlot], Awaitable[None]],
        on_lost: Callable[[EngineSlot, Exception], Awaitable[None]],
        flights: KeptFlights,
    ) -> None:
        self._folder = folder
        self._board = board
        self._control = control
        self._adapters = adapters
        self._on_up = on_up
        self._on_fewer = on_fewer
        self._on_lost = on_lost
        self._flights = flights

    async def start(self, slot: EngineSlot, settings: Settings) -> None:
        """Start a model's engines; returns once all answer. settings are the model's. Raises UserError or EngineError
        when one of them can't start; where the server needs it, the server ends instead."""
        slot.is_wanted = True
        handed = as_line(settings)
        for replica in slot.replicas:
            replica.arrival = asyncio.get_running_loop().create_future()
            replica.keeping = self._control.spawn(self._keep(replica, handed))
        try:
            await asyncio.gather(*(replica.arrival for replica in slot.replicas if replica.arrival is not None))
        except (UserError, EngineError):
            if len(slot.replicas) > 1:
                await self.stop(slot)
            raise

    async def stop(self, slot: EngineSlot) -> None:
        """Returns when the processes are reaped, so that their memory is free."""
        slot.is_wanted = False
        await asyncio.gather(*map(self._stop, slot.replicas))

    async def _stop(self, replica: Replica) -> None:
        if replica.child is not None:
            await self._control.send(replica.identity, Stop())
            await replica.child.stop(_STOP_S if replica.is_reachable else 0.0)
        if replica.keeping is not None:
            if replica.child is None:
                replica.keeping.cancel()  # it waits for the next start
            await asyncio.gather(replica.keeping, return_exceptions=True)
            replica.keeping = None

    async def _keep(self, replica: Replica, handed: bytes) -> None:
        """Start an engine, and again whenever it dies, while it is wanted."""
        slot = replica.slot
        while slot.is_wanted and not self._control.stopping.is_set():
            replica.generation += 1
            replica.failure, replica.is_up = None, False
            replica.backoff.note_start()
            self._board.reset(self._board.engine_slot(replica.index))
            arguments = (self._folder.path, slot.index, replica.number, replica.generation)
            num_oom_kills_before = num_oom_kills()
            replica.child = await Child.start("plugserve.core.engine", arguments, handed)
            code = await replica.child.wait()
            if self._control.stopping.is_set():
                return
            await hear_last_words(replica, code)
            if code == -signal.SIGKILL and num_oom_kills() > num_oom_kills_before:
                replica.failure = StartFailed(message=killed_for_memory(replica.info), is_user_error=False)
            replica.child = None
            replica.info, replica.is_reachable = None, False
            self._board.reset(self._board.engine_slot(replica.index))
            self._adapters.note_engine_down(replica.identity)
            if slot.is_wanted:
                await self._note_death(replica, code)

    async def _keep_flight(self, replica: Replica) -> None:
        """Keep what the dead engine had recorded."""
        kept = await asyncio.to_thread(self._flights.keep, self._folder.flight_file(replica.index))
        if kept is not None:
            log.info("flight recorder kept %s path=%s: plugserve replay shows and repeats it", replica.shown, kept)

    async def _note_death(self, replica: Replica, code: int) -> None:
        slot, error = replica.slot, start_error("engine", replica.failure, code)
        if slot.is_first_start:
            slot.is_wanted = False
            self._control.give_up(error)
        elif not replica.is_up and replica.arrival is not None and not replica.arrival.done():
            slot.is_wanted = False
            replica.arrival.set_exception(error)
        elif not replica.is_up and not slot.entry.is_pinned and slot.info is None:
            slot.is_wanted = False
            await self._on_lost(slot, error)
        else:
            await self._restart_later(replica, code)

    async def _restart_later(self, replica: Replica, code: int) -> None:
        slot = replica.slot
        reason = describe_exit(code) if replica.failure is None else replica.failure.message
        if slot.info is None:
            slot.change(ModelState.DEAD, reason=reason)
            await self._control.broadcast(slot.down())
        else:
            await self._on_fewer(slot)
        pause_s = replica.backoff.next_pause_s()
        log.error("engine died %s reason=%s restart_in_s=%.1f", replica.shown, reason, pause_s)
        await self._keep_flight(replica)
        await asyncio.sleep(pause_s)

    async def note_ready(self, replica: Replica, info: EngineInfo) -> None:
        """The engine has loaded its model. Loads its adapters before workers get its address."""
        slot, generation = replica.slot, replica.generation
        replica.is_reachable = True
        try:
            problem = await self._adapters.bring_up(slot.name, replica.identity, is_first=slot.is_first_start)
        except EngineUnavailableError:
            return
        if problem:
            self._control.give_up(UserError(problem))
        elif replica.is_reachable and replica.generation == generation and slot.is_wanted:
            replica.info, replica.is_up = info, True
            if slot.state is not ModelState.LOADING or all(one.is_up for one in slot.replicas):
                await self._on_up(slot, replica, info)
            if replica.arrival is not None and not replica.arrival.done():
                replica.arrival.set_result(None)


async def hear_last_words(slot: Replica | WorkerSlot, code: int) -> None:
    """The child's last message may still be in the socket when its exit is seen; a killed child sends none."""
    for _ in range(20):
        if code <= 0 or slot.failure is not None:
            return
        await asyncio.sleep(0.05)


def start_error(what: str, failure: StartFailed | None, code: int) -> UserError | EngineError:
    """Why a start failed: the child's message where it sent one."""
    if failure is None:
        return EngineError(f"the {what} did not start: {describe_exit(code)}; its log has the cause")
    return UserError(failure.message) if failure.is_user_error else EngineError(f"{what}: {failure.message}")


def killed_for_memory(info: EngineInfo | None) -> str:
    """Why the system killed an engine, with the ledger of the model that it had loaded."""
    taken = "" if info is None or info.memory is None else f"; the model was to take {summary(info.memory)}"
    return f"killed by the system, whose memory ran out (SIGKILL){taken}; plugserve doctor says what makes it fit"


def describe_exit(code: int) -> str:
    """An exit code as text."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
