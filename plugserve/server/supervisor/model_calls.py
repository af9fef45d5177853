"""Clients' explicit calls on the model pool: load a model, unload one, add one from the Hugging Face hub."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from typing import Final

from plugserve.core.errors import EngineError, EngineUnavailableError, RequestError, UserError
from plugserve.core.settings.model_entries import ModelEntry, settings_of
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.messages import ModelAdded, ModelCall, ModelReply, ModelUse
from plugserve.server.supervisor.control import Control
from plugserve.server.supervisor.model_finder import FoundModel, find_model
from plugserve.server.supervisor.model_pool import ModelPool
from plugserve.server.supervisor.process_slots import EngineSlot, ModelState

log = logging.getLogger(__name__)

_CALLER: Final = b"call"  # whose use of a model an explicit load is
_MOST_CALLS: Final = 64  # that wait
_REFUSED_S: Final = 60.0  # an id that the hub doesn't have is not asked for again in this time
_MOST_REFUSED: Final = 256


class ModelCalls:
    """spare are the indices of models that requests may add. on_join is called with each that joins the table."""

    def __init__(
        self,
        settings: Settings,
        pool: ModelPool,
        control: Control,
        slots: list[EngineSlot],
        spare: list[int],
        on_join: Callable[[EngineSlot], None],
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._control = control
        self._slots = slots
        self._spare = spare
        self._on_join = on_join
        self._num_calls = 0
        self._searches: dict[str, asyncio.Task[FoundModel]] = {}
        self._refused: OrderedDict[str, tuple[float, str]] = OrderedDict()

    async def answer(self, call: ModelCall) -> ModelReply:
        """Handle a client's call that a worker forwards."""
        self._num_calls += 1
        try:
            if self._num_calls > _MOST_CALLS:
                raise EngineUnavailableError(f"{_MOST_CALLS} calls wait for models already; try again in a moment.")
            async with asyncio.timeout(self._settings.model_load_timeout):
                await {"load": self._load, "unload": self._unload, "add": self._add}[call.action](call)
        except RequestError as error:
            return ModelReply(call.call_id, error.status, str(error), error.code or "")
        except TimeoutError:
            seconds = self._settings.model_load_timeout
            return ModelReply(call.call_id, 503, f"It took longer than --model-load-timeout {seconds:g} s.")
        except EngineUnavailableError as error:
            return ModelReply(call.call_id, 503, str(error))
        finally:
            self._num_calls -= 1
        return ModelReply(call.call_id)

    def _slot(self, name: str) -> EngineSlot:
        slot = self._pool.find(name)
        if slot is None:
            raise RequestError(f"The model {name!r} does not exist.", status=404, code="model_not_found")
        return slot

    # ---- load, unload

    async def _load(self, call: ModelCall) -> None:
        """Returns once the model answers. A load that failed is tried again at once."""
        slot = self._slot(call.model)
        if slot.state in (ModelState.UNLOADED, ModelState.FAILED):
            self._pool.begin_load(slot)
        while slot.state is not ModelState.UP:
            changed = slot.changed
            if slot.state is ModelState.FAILED:
                raise EngineUnavailableError(f"The model {call.model!r} can't be loaded: {slot.reason}")
            if slot.state is ModelState.UNLOADED:
                self._pool.begin_load(slot)
            await changed.wait()
        slot.uses[_CALLER] = ModelUse(slot.name, 0, time.monotonic(), call.keep_alive_s)

    async def _unload(self, call: ModelCall) -> None:
        """Returns once the model's memory is free. Running requests end first; a load that is under way is ended."""
        slot = self._slot(call.model)
        if slot.is_first_start:
            raise EngineUnavailableError("The server is still starting; try again in a moment.")
        while slot.state is not ModelState.UNLOADED:
            changed = slot.changed
            if slot.state is ModelState.LOADING:
                await self._pool.cancel_load(slot)
            elif slot.state is ModelState.FAILED:
                slot.change(ModelState.UNLOADED)
                await self._control.broadcast(slot.down())
            elif slot.state is ModelState.RELEASING:
                await changed.wait()
            else:
                await self._pool.unload(slot, "call", self._settings.model_load_timeout)

    # ---- add

    async def _add(self, call: ModelCall) -> None:
        """Returns once the model is in the table: its files are there. Raises RequestError (404) for an id that can't
        be had."""
        if self._pool.find(call.model) is not None:
            return
        until_s, reason = self._refused.get(call.model, (0.0, ""))
        if time.monotonic() < until_s:
            raise _not_found(call.model, reason)
        entry = ModelEntry(call.model, call.model, (call.model,))
        task = self._searches.get(call.model)
        if task is None:
            log.info("a request names a model that is looked for on the Hugging Face hub: %s", call.model)
            task = asyncio.create_task(find_model(call.model, settings_of(self._settings, entry)))
            self._searches[call.model] = task
            task.add_done_callback(lambda _: self._searches.pop(call.model, None))
        try:
            found = await asyncio.shield(task)
        except (UserError, EngineError) as error:
            self._refused[call.model] = time.monotonic() + _REFUSED_S, str(error)
            while len(self._refused) > _MOST_REFUSED:
                self._refused.popitem(last=False)
            raise _not_found(call.model, str(error)) from None
        if self._pool.find(call.model) is None:
            await self._join(entry, found)

    async def _join(self, entry: ModelEntry, found: FoundModel) -> None:
        num_replicas = self._settings.data_parallel_size
        slot = EngineSlot(await self._free_index(), entry, found.source, num_replicas)
        slot.found, slot.is_added = found, True
        self._slots.append(slot)
        self._on_join(slot)
        await self._control.broadcast(ModelAdded(slot.index, slot.name, asdict(entry)))
        await self._control.broadcast(slot.down())

    async def _free_index(self) -> int:
        """The index of a model that requests may add; the least recently used one that is not loaded leaves for it."""
        if self._spare:
            return self._spare.pop()
        added = [
            slot for slot in self._slots if slot.is_added and slot.state in (ModelState.UNLOADED, ModelState.FAILED)
        ]
        if not added:
            raise EngineUnavailableError("Too many models that requests named are loaded; try again in a moment.")
        leaving = min(added, key=lambda slot: slot.last_used_s)
        self._slots.remove(leaving)
        await self._control.broadcast(ModelAdded(leaving.index, leaving.name))
        return leaving.index

    def close(self) -> None:
        """End searches, which outlive the calls that began them."""
        for task in self._searches.values():
            task.cancel()


def _not_found(name: str, reason: str) -> RequestError:
    return RequestError(f"The model {name!r} can't be had: {reason}", status=404, code="model_not_found")
