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
from plugserve.server.supervisor.process_slots import EngineSlot, ModelState, WorkerSlot

log = logging.getLogger(__name__)

_STOP_S = 5.0


class EngineKeeper:
    """on_up is awaited when an engine answers and has its adapters; on_lost when one that was up can't be started
    again."""

    def __init__(
        self,
        folder: RuntimeFolder,
        board: HeartbeatBoard,
        control: Control,
        adapters: AdapterRegistry,
        on_up: Callable[[EngineSlot, EngineInfo], Awaitable[None]],
        on_lost: Callable[[EngineSlot, Exception], Awaitable[None]],
        flights: KeptFlights,
    ) -> None:
        self._folder = folder
        self._board = board
        self._control = control
        self._adapters = adapters
        self._on_up = on_up
        self._on_lost = on_lost
        self._flights = flights

    async def start(self, slot: EngineSlot, settings: Settings) -> None:
        """Start an engine; returns once it answers. settings are the model's. Raises UserError or EngineError when it
        can't start; where the server needs it, the server ends instead."""
        slot.is_wanted = True
        slot.arrival = asyncio.get_running_loop().create_future()
        slot.keeping = self._control.spawn(self._keep(slot, as_line(settings)))
        await slot.arrival

    async def stop(self, slot: EngineSlot) -> None:
        """Returns when the process is reaped, so that its memory is free."""
        slot.is_wanted = False
        if slot.child is not None:
            await self._control.send(slot.identity, Stop())
            await slot.child.stop(_STOP_S if slot.is_reachable else 0.0)
        if slot.keeping is not None:
            if slot.child is None:
                slot.keeping.cancel()  # it waits for the next start
            await asyncio.gather(slot.keeping, return_exceptions=True)
            slot.keeping = None

    async def _keep(self, slot: EngineSlot, handed: bytes) -> None:
        """Start an engine, and again whenever it dies, while it is wanted."""
        while slot.is_wanted and not self._control.stopping.is_set():
            slot.generation += 1
            slot.failure, slot.is_up = None, False
            slot.backoff.note_start()
            self._board.reset(self._board.engine_slot(slot.index))
            arguments = (self._folder.path, slot.index, slot.generation)
            num_oom_kills_before = num_oom_kills()
            slot.child = await Child.start("plugserve.core.engine", arguments, handed)
            code = await slot.child.wait()
            if self._control.stopping.is_set():
                return
            await hear_last_words(slot, code)
            if code == -signal.SIGKILL and num_oom_kills() > num_oom_kills_before:
                slot.failure = StartFailed(message=killed_for_memory(slot.info), is_user_error=False)
            slot.child = None
            slot.info, slot.is_reachable = None, False
            self._board.reset(self._board.engine_slot(slot.index))
            self._adapters.note_engine_down(slot.name)
            if slot.is_wanted:
                await self._note_death(slot, code)

    async def _keep_flight(self, slot: EngineSlot) -> None:
        """Keep what the dead engine had recorded."""
        kept = await asyncio.to_thread(self._flights.keep, self._folder.flight_file(slot.index))
        if kept is not None:
            log.info("flight recorder kept model=%s path=%s: plugserve replay shows and repeats it", slot.name, kept)

    async def _note_death(self, slot: EngineSlot, code: int) -> None:
        error = start_error("engine", slot.failure, code)
        if slot.is_first_start:
            slot.is_wanted = False
            self._control.give_up(error)
        elif not slot.is_up and slot.arrival is not None and not slot.arrival.done():
            slot.is_wanted = False
            slot.arrival.set_exception(error)
        elif not slot.is_up and not slot.entry.is_pinned:
            slot.is_wanted = False
            await self._on_lost(slot, error)
        else:
            await self._restart_later(slot, code)

    async def _restart_later(self, slot: EngineSlot, code: int) -> None:
        reason = describe_exit(code) if slot.failure is None else slot.failure.message
        slot.change(ModelState.DEAD, reason=reason)
        await self._control.broadcast(slot.down())
        pause_s = slot.backoff.next_pause_s()
        log.error("engine died model=%s reason=%s restart_in_s=%.1f", slot.name, reason, pause_s)
        await self._keep_flight(slot)
        await asyncio.sleep(pause_s)

    async def note_ready(self, slot: EngineSlot, info: EngineInfo) -> None:
        """The engine has loaded its model. Loads its adapters before workers get its address."""
        generation, slot.is_reachable = slot.generation, True
        try:
            problem = await self._adapters.bring_up(slot.name, is_first=slot.is_first_start)
        except EngineUnavailableError:
            return
        if problem:
            self._control.give_up(UserError(problem))
        elif slot.is_reachable and slot.generation == generation and slot.is_wanted:
            slot.info, slot.is_up = info, True
            await self._on_up(slot, info)
            if slot.arrival is not None and not slot.arrival.done():
                slot.arrival.set_result(None)


async def hear_last_words(slot: EngineSlot | WorkerSlot, code: int) -> None:
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
