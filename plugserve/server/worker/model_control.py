"""A worker's part in the model pool: follows the supervisor's news of each model, and sends requests' wishes.

A model's text side is loaded when the model is loaded for the first time, and dropped when it is unloaded.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

import msgspec

from plugserve.core.errors import EngineUnavailableError, ModelNotLoadedError, RequestError, UserError, one_line
from plugserve.core.settings.model_entries import ModelEntry
from plugserve.core.wire.messages import (
    EngineDown,
    EngineUp,
    ModelAdded,
    ModelCall,
    ModelReleased,
    ModelReply,
    ModelsUsed,
    ModelUse,
    ReleaseModel,
    TextFailed,
    WantModel,
)
from plugserve.core.wire.runtime_folder import as_entry
from plugserve.server.worker.served_models import ServedModel, ServedModels, TextSide

logger = logging.getLogger(__name__)

_REPORT_S: Final = 1.0
_ANSWER_S: Final = 15.0  # beyond --model-load-timeout, for the supervisor's reply


class PooledClient(Protocol):
    """The part of ZmqEngineClient that follows the supervisor's news."""

    def connect(self, addresses: Sequence[str], info: Any, num_restarts: int = 0) -> None: ...

    def disconnect(self, state: str, reason: str) -> None: ...

    async def close(self) -> None: ...


class ModelControl:
    """load_text reads a model's text side; make_model makes the model of an entry that joins the table, and its client.
    send puts a message on the control socket."""

    def __init__(
        self,
        models: ServedModels,
        send: Callable[[msgspec.Struct], Awaitable[None]],
        load_text: Callable[[ServedModel], Awaitable[TextSide]],
        make_model: Callable[[int, ModelEntry], ServedModel],
        load_timeout_s: float,
    ) -> None:
        self._models = models
        self._send = send
        self._load_text = load_text
        self._make_model = make_model
        self._load_timeout_s = load_timeout_s
        self._used: set[ServedModel] = set()
        self._loading_texts: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._asked: set[str] = set()
        self._call_ids = itertools.count(1)
        self._calls: dict[int, asyncio.Future[ModelReply]] = {}
        for model in models:
            self._follow(model)

    def _follow(self, model: ServedModel) -> None:
        model.ask = partial(self._ask, model)
        if not model.is_pinned:
            model.gate.on_use = partial(self._note_use, model)

    def _note_use(self, model: ServedModel) -> None:
        self._used.add(model)

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ---- to the supervisor

    async def report_uses(self) -> None:
        """Send what models are used, once a second at most, for as long as the worker lives."""
        while True:
            await asyncio.sleep(_REPORT_S)
            await self._flush_uses()

    async def _flush_uses(self) -> None:
        used, self._used = self._used, set()
        uses = [
            ModelUse(one.client.model, one.gate.num_requests, one.gate.last_used_s, one.gate.keep_alive_s)
            for one in used
        ]
        if uses:
            await self._send(ModelsUsed(uses))

    def _ask(self, model: ServedModel) -> None:
        """Requests wait for the model. Asks once for each change of its state."""
        if model.client.model not in self._asked:
            self._asked.add(model.client.model)
            self._spawn(self._want(model.client.model))

    async def _want(self, name: str) -> None:
        await self._flush_uses()  # the supervisor chooses what makes room by what was used last
        await self._send(WantModel(name))

    # ---- the supervisor's news

    async def note(self, message: msgspec.Struct) -> bool:
        """Handle a message about models; False for any other."""
        match message:
            case EngineUp() | EngineDown():
                self._note_engine(message)
            case ReleaseModel():
                self._hold(message)
            case ModelAdded():
                await self._note_added(message)
            case ModelReply():
                reply = self._calls.get(message.call_id)
                if reply is not None and not reply.done():
                    reply.set_result(message)
            case _:
                return False
        return True

    def _model(self, name: str) -> ServedModel | None:
        return next((model for model in self._models if model.client.model == name), None)

    def _note_engine(self, message: EngineUp | EngineDown) -> None:
        model = self._model(message.model)
        if model is None:
            return
        client: PooledClient = model.client  # type: ignore[assignment]
        self._asked.discard(message.model)
        model.counts = message.counts
        if isinstance(message, EngineUp):
            model.news = EngineDown(message.model, "up", "", waits=True)
            model.is_held, model.gate.on_idle = False, _nothing
            client.connect(message.addresses, message.info, message.num_restarts)
            self._want_text(model)
            model.admit_waiting()
            return
        model.news = message
        if message.state != "unloading":
            model.is_held, model.gate.on_idle = False, _nothing
            client.disconnect(message.state, message.reason)
        if message.state == "loading" and message.is_found:
            self._want_text(model)
        elif message.state in ("unloaded", "failed"):
            self._drop_text(model)
        self._settle_waiting(model, message)

    def _settle_waiting(self, model: ServedModel, message: EngineDown) -> None:
        """What the news means for requests that wait."""
        if message.state == "failed":
            model.gate.fail_waiting(model.load_error(message.retry_at_s - time.monotonic()))
        elif message.state == "dead":
            model.gate.fail_waiting(
                EngineUnavailableError(f"The engine of {model.name!r} stopped; try again in a moment.")
            )
        elif message.state == "unloaded" and model.gate.has_waiting:
            self._ask(model)

    def _hold(self, message: ReleaseModel) -> None:
        """Hold back new requests, and answer when no request uses the model."""
        model = self._model(message.model)
        if model is None:
            self._spawn(self._send(ModelReleased(message.model, message.number)))
            return
        model.is_held = True
        self._asked.discard(message.model)

        def release() -> None:
            model.gate.on_idle = _nothing
            self._spawn(self._send(ModelReleased(message.model, message.number)))

        model.gate.on_idle = release
        if not model.gate.num_requests:
            release()

    async def _note_added(self, message: ModelAdded) -> None:
        known = self._model(message.name)
        if message.entry is not None and known is None:
            model = self._make_model(message.index, as_entry(message.entry))
            self._follow(model)
            self._models.add(model)
        elif message.entry is None and known is not None:
            self._models.remove(known)
            self._drop_text(known)
            known.gate.fail_waiting(ModelNotLoadedError(f"The model {known.name!r} made room for another.", retry_s=1))
            await known.client.close()

    # ---- text sides

    def _want_text(self, model: ServedModel) -> None:
        name = model.client.model
        if model.text is None and name not in self._loading_texts:
            task = self._loading_texts[name] = self._spawn(self._attach_text(model))
            task.add_done_callback(lambda _: self._loading_texts.pop(name, None))

    async def _attach_text(self, model: ServedModel) -> None:
        try:
            text = await self._load_text(model)
        except UserError as error:
            await self._send(TextFailed(model.client.model, str(error)))
            return
        except Exception as error:
            logger.exception("the tokenizer of model=%s can't be read", model.name)
            await self._send(TextFailed(model.client.model, f"its tokenizer can't be read: {one_line(error)}"))
            return
        if model.client.state in ("unloaded", "failed"):
            await text.close()  # it was unloaded meanwhile
            return
        model.text = text
        model.admit_waiting()

    def _drop_text(self, model: ServedModel) -> None:
        if model.text is not None:
            self._spawn(model.text.close())
            model.text = None

    # ---- clients' calls

    async def load(self, model: ServedModel, keep_alive_s: float | None = None) -> None:
        """Returns once the model answers here. Raises EngineUnavailableError."""
        await self._call("load", model.client.model, keep_alive_s)
        async with model.in_use(self._load_timeout_s, keep_alive_s):
            pass

    async def unload(self, model: ServedModel) -> None:
        """Returns once its memory is free. Raises EngineUnavailableError."""
        await self._call("unload", model.client.model)

    async def add(self, name: str) -> None:
        """Returns once the Hugging Face id is in the table. Raises RequestError (404) or EngineUnavailableError."""
        await self._call("add", name)

    async def _call(self, action: str, name: str, keep_alive_s: float | None = None) -> None:
        call_id = next(self._call_ids)
        future: asyncio.Future[ModelReply] = asyncio.get_running_loop().create_future()
        self._calls[call_id] = future
        try:
            await self._send(ModelCall(call_id, action, name, keep_alive_s))
            async with asyncio.timeout(self._load_timeout_s + _ANSWER_S):
                reply = await future
        except TimeoutError:
            raise ModelNotLoadedError(f"The call took too long: {action} {name}; try again later.", retry_s=5) from None
        finally:
            del self._calls[call_id]
        if reply.status == 503:
            raise ModelNotLoadedError(reply.error, retry_s=reply.retry_s)
        if reply.status != 200:
            raise RequestError(reply.error, status=reply.status, code=reply.code or None, param="model")

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _nothing() -> None:
    """The gate's callback where no release is under way."""
