"""The models of a running server: which are loaded, when each is loaded and unloaded, and the news of it for workers.

A model is loaded on the first request that names it, in an engine process of its own, and unloaded by ending that
process: after a time without requests, or when another one needs its memory. Requests that have begun are never cut
off: workers hold new ones back and answer once the last one is done.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from plugserve.core.contracts.engine_facts import EngineInfo
from plugserve.core.errors import ConfigError, EngineError, ModelError, UserError
from plugserve.core.settings.model_entries import settings_of
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.heartbeats import HeartbeatBoard
from plugserve.core.wire.messages import EngineUp, ModelReleased, ModelUse, ReleaseModel
from plugserve.core.wire.runtime_folder import RuntimeFolder
from plugserve.server.operations.tracing.tracer import NullTracer, Tracer
from plugserve.server.supervisor.adapter_registry import AdapterRegistry
from plugserve.server.supervisor.control import Control
from plugserve.server.supervisor.engine_keeper import EngineKeeper
from plugserve.server.supervisor.kept_flights import KeptFlights, flights_folder
from plugserve.server.supervisor.load_spans import load_work, unload_work
from plugserve.server.supervisor.memory_room import MemoryRoom, NoRoomError
from plugserve.server.supervisor.model_finder import find_model
from plugserve.server.supervisor.model_size import GIB, measure_bytes
from plugserve.server.supervisor.process_slots import EngineSlot, ModelState, Replica
from plugserve.server.supervisor.resource_shares import ResourceShares
from plugserve.server.supervisor.startup_lines import announce_engine

log = logging.getLogger(__name__)

_PERIOD_S: Final = 0.5
_FIRST_RETRY_S: Final = 5.0
_LONGEST_RETRY_S: Final = 300.0
_BUSY_RETRY_S: Final = 2.0


@dataclass(slots=True)
class _Release:
    """A release in progress: the workers that still serve requests of the model."""

    number: int
    workers: set[bytes]
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def discard(self, identity: bytes) -> None:
        self.workers.discard(identity)
        if not self.workers:
            self.done.set()


class ModelPool:
    """slots hold one entry a model, in the order of the table. Models that load at the start are pinned to the server's
    life: it ends when one of them can't be started."""

    def __init__(
        self,
        settings: Settings,
        folder: RuntimeFolder,
        board: HeartbeatBoard,
        control: Control,
        adapters: AdapterRegistry,
        slots: list[EngineSlot],
        budget_bytes: int,
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer if tracer is not None else NullTracer()
        self._settings = settings
        self._folder = folder
        self._control = control
        self._slots = slots
        self._shares = ResourceShares(settings, [slot.entry for slot in slots])
        self.room = MemoryRoom(budget_bytes, slots, self._evict)
        flights = KeptFlights(flights_folder(settings.flight_recorder_dir))
        self.keeper = EngineKeeper(
            folder, board, control, adapters, self._note_up, self._broadcast_up, self._fail, flights
        )
        self._releases: dict[str, _Release] = {}
        self._numbers = itertools.count(1)

    async def run(self) -> None:
        """Load what loads at the start; then unload what has been idle for long enough."""
        for slot in self._slots:
            if slot.entry.is_preloaded:
                self.begin_load(slot)
        while True:
            await asyncio.sleep(_PERIOD_S)
            self._unload_idle()

    def find(self, name: str) -> EngineSlot | None:
        return next((slot for slot in self._slots if slot.name == name), None)

    # ---- loading

    def want(self, name: str) -> None:
        """A worker has requests for the model. Nothing happens where the worker's news is on its way."""
        slot = self.find(name)
        if slot is not None:
            may_try = slot.state is ModelState.FAILED and time.monotonic() >= slot.retry_at_s
            if slot.state is ModelState.UNLOADED or may_try:
                self.begin_load(slot)

    def begin_load(self, slot: EngineSlot) -> None:
        slot.load_stages.clear()
        slot.change(ModelState.LOADING, stage="finding files")
        slot.load = self._control.spawn(self._load(slot))

    async def _load(self, slot: EngineSlot) -> None:
        slot.load_started_s = time.monotonic()
        try:
            await self._publish(slot)
            own = self._shares.divided(settings_of(self._settings, slot.entry), slot.entry)
            await self._find(slot, own)
            if slot.found is not None:
                own = self._shares.with_kv(own, slot.entry, slot.found)
                slot.change(ModelState.LOADING, stage="waiting for memory")
                await self._publish(slot)
                size_bytes = len(slot.replicas) * slot.found.size_with(own.kv_cache_memory)
                await self._reserve(slot, slot.measured_bytes or size_bytes)
            slot.change(ModelState.LOADING, stage="loading")
            await self._publish(slot)
            await self.keeper.start(slot, own)
            await self.room.trim(slot)
        except (UserError, EngineError) as error:
            if not self._control.stopping.is_set():
                await self._fail(slot, error)
        except TimeoutError:
            await self._fail(slot, NoRoomError("the models that load at the start are still loading"))

    async def _find(self, slot: EngineSlot, own: Settings) -> None:
        """Know the model's files and, where it matters, its memory. Raises ModelError or EngineError."""
        is_asked = not slot.is_first_start or self._settings.model_memory_budget is not None
        if slot.source is None or (slot.found is None and (is_asked or self._shares.divides_gpu(own, slot.entry))):
            slot.found = await find_model(slot.name, own)
            slot.source = slot.found.source
        self._folder.write_source(slot.index, slot.source)

    async def _reserve(self, slot: EngineSlot, size_bytes: int) -> None:
        """Raises NoRoomError; a model without which the server can't start ends it then."""
        async with asyncio.timeout(self._settings.model_load_timeout):
            while not slot.is_first_start and any(one.is_starting for one in self._slots):
                await asyncio.sleep(_PERIOD_S)  # what those take is known soon
        try:
            await self.room.reserve(slot, size_bytes, self._settings.model_load_timeout)
        except NoRoomError as error:
            if slot.is_first_start:
                self._control.give_up(ConfigError(f"the model {slot.name} can't be loaded at the start: {error}"))
            raise

    async def _fail(self, slot: EngineSlot, error: Exception) -> None:
        """The load failed: remember why, and when it may be tried again."""
        slot.num_failures += 1
        retry_s = min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2 ** min(slot.num_failures - 1, 10))
        if isinstance(error, NoRoomError):
            retry_s = _BUSY_RETRY_S
        if isinstance(error, ModelError):
            slot.source = slot.found = None  # its files may be mended by then
        slot.counts.size_bytes = 0
        slot.change(ModelState.FAILED, reason=str(error), retry_s=retry_s)
        self._tracer.record(load_work(slot, error=error))
        log.error("model not loaded name=%s retry_in_s=%.0f reason=%s", slot.name, retry_s, error)
        await self._publish(slot)

    async def _note_up(self, slot: EngineSlot, replica: Replica, info: EngineInfo) -> None:
        is_load = slot.state is ModelState.LOADING
        seconds = time.monotonic() - slot.load_started_s
        slot.counts.size_bytes = sum(
            measure_bytes(one.child.pid, one.info)
            for one in slot.replicas
            if one.child is not None and one.info is not None
        )
        slot.measured_bytes = slot.size_bytes
        slot.num_failures = 0
        slot.loaded_s = time.monotonic()
        self._tracer.record(load_work(slot, info))
        if slot.name in self._releases:
            return  # it came back while it is being unloaded
        slot.change(ModelState.UP)
        if not is_load:
            slot.num_restarts += 1
            log.info("engine is back %s load_s=%.2f", replica.shown, info.load_seconds)
        else:
            self._count_load(slot, seconds)
        if not slot.num_ups:
            announce_engine(slot.name, info)
        slot.num_ups += 1
        if is_load and self._shares.has_several:
            log.info(
                "model loaded name=%s seconds=%.2f size_gib=%.2f %s",
                slot.name,
                seconds,
                slot.size_bytes / GIB,
                self._total(),
            )
        await self._broadcast_up(slot)

    def _count_load(self, slot: EngineSlot, seconds: float) -> None:
        slot.counts.num_loads += 1
        slot.counts.load_s += seconds
        slot.counts.last_load_s = seconds

    def _total(self) -> str:
        num_loaded = sum(slot.size_bytes > 0 for slot in self._slots)
        budget = f" budget_gib={self.room.budget_bytes / GIB:.2f}" if self._shares.has_several else ""
        return f"loaded={num_loaded} used_gib={self.room.used_bytes / GIB:.2f}{budget}"

    # ---- unloading

    def _unload_idle(self) -> None:
        for slot in self._slots:
            if slot.state is ModelState.UP and self._is_expired(slot):
                self._control.spawn(self._unload_expired(slot))
                slot.change(ModelState.RELEASING)

    def _is_expired(self, slot: EngineSlot) -> bool:
        if slot.entry.is_pinned or slot.num_requests:
            return False
        ttl_s = slot.entry.ttl_s if slot.entry.ttl_s is not None else self._settings.model_ttl
        given_s = slot.keep_alive_s
        limit_s = (ttl_s or -1.0) if given_s is None else given_s
        return 0 <= limit_s <= time.monotonic() - slot.last_used_s

    async def _unload_expired(self, slot: EngineSlot) -> None:
        await self.unload(slot, "idle", _PERIOD_S)

    async def _evict(self, slot: EngineSlot, limit_s: float) -> bool:
        return await self.unload(slot, "memory", limit_s)

    async def unload(self, slot: EngineSlot, reason: str, limit_s: float) -> bool:
        """End the model's engine after the last request that uses it. False if that didn't end within limit_s: the
        model stays loaded. Goes on where the caller is cancelled, so that no engine is left half stopped."""
        return await asyncio.shield(self._control.spawn(self._unload(slot, reason, limit_s)))

    async def _unload(self, slot: EngineSlot, reason: str, limit_s: float) -> bool:
        if slot.name in self._releases:
            return False
        started_s, size_bytes = time.monotonic(), slot.size_bytes
        if not await self._release(slot, limit_s):
            return False
        await self.keeper.stop(slot)
        slot.counts.size_bytes = 0
        slot.counts.unloads[reason] = slot.counts.unloads.get(reason, 0) + 1
        slot.change(ModelState.UNLOADED)
        slot.uses.clear()
        self._tracer.record(unload_work(slot, started_s, reason, size_bytes))
        log.info(
            "model unloaded name=%s reason=%s seconds=%.2f freed_gib=%.2f %s",
            slot.name, reason, time.monotonic() - started_s, size_bytes / GIB, self._total(),
        )  # fmt: skip
        await self._publish(slot)
        return True

    async def _release(self, slot: EngineSlot, limit_s: float) -> bool:
        """Have workers hold back new requests, and wait for those that run. On False they go on as before."""
        release = _Release(next(self._numbers), set(self._control.listeners()))
        has_listeners = bool(release.workers)
        self._releases[slot.name] = release
        slot.change(ModelState.RELEASING)
        try:
            await self._control.broadcast(ReleaseModel(slot.name, release.number))
            if has_listeners:
                await asyncio.wait_for(release.done.wait(), max(0.0, limit_s))
        except TimeoutError:
            del self._releases[slot.name]
            await self._resume(slot)
            return False
        del self._releases[slot.name]
        return True

    async def _resume(self, slot: EngineSlot) -> None:
        """Serve again what was to be unloaded."""
        if slot.info is not None:
            slot.change(ModelState.UP)
            await self._broadcast_up(slot)

    async def cancel_load(self, slot: EngineSlot) -> None:
        """End a load that is under way; requests that wait for it fail. Goes on where the caller is cancelled."""
        await asyncio.shield(self._control.spawn(self._cancel_load(slot)))

    async def _cancel_load(self, slot: EngineSlot) -> None:
        if slot.load is not None:
            slot.load.cancel()
            await asyncio.gather(slot.load, return_exceptions=True)
        await self.keeper.stop(slot)
        slot.counts.size_bytes = 0
        slot.change(ModelState.FAILED, reason="it was unloaded while it loaded")
        await self._publish(slot)
        slot.change(ModelState.UNLOADED)
        await self._publish(slot)

    # ---- news from and for workers

    def note_uses(self, identity: bytes, uses: Sequence[ModelUse]) -> None:
        for use in uses:
            slot = self.find(use.model)
            if slot is not None:
                slot.uses[identity] = use
        self._unload_idle()

    def note_released(self, identity: bytes, message: ModelReleased) -> None:
        release = self._releases.get(message.model)
        if release is not None and release.number == message.number:
            release.discard(identity)

    async def note_text_failure(self, name: str, message: str) -> None:
        """A worker can't read the model's tokenizer or template, so that no request can be served."""
        slot = self.find(name)
        if slot is not None and slot.state in (ModelState.LOADING, ModelState.UP):
            slot.change(ModelState.FAILED, reason=message, retry_s=_LONGEST_RETRY_S)  # other workers say so, too
            if slot.load is not None and not slot.load.done():
                slot.load.cancel()
                await asyncio.gather(slot.load, return_exceptions=True)
            await self.keeper.stop(slot)
            await self._fail(slot, ModelError(message))

    def note_worker_gone(self, identity: bytes) -> None:
        for release in self._releases.values():
            release.discard(identity)
        for slot in self._slots:
            slot.uses.pop(identity, None)

    async def greet(self, identity: bytes) -> None:
        """Send a new worker the state of every model."""
        for slot in self._slots:
            is_up = slot.info is not None and slot.state is ModelState.UP
            message = self._up(slot, slot.info) if is_up and slot.info is not None else slot.down()
            await self._control.send(identity, message)

    async def _publish(self, slot: EngineSlot) -> None:
        await self._control.broadcast(slot.down())

    async def _broadcast_up(self, slot: EngineSlot) -> None:
        """Tell workers which of the model's engines take requests now."""
        if slot.info is not None and slot.state is ModelState.UP:
            await self._control.broadcast(self._up(slot, slot.info))

    def _up(self, slot: EngineSlot, info: EngineInfo) -> EngineUp:
        addresses = [
            self._folder.engine_address(one.index, one.generation) if one.info is not None else ""
            for one in slot.replicas
        ]
        return EngineUp(slot.name, addresses, info, slot.num_restarts, slot.counts)
