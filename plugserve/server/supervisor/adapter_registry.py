"""The LoRA adapters of a running server: which are loaded, in which engine, and their announcement to all workers.

The supervisor keeps the list, because any worker may get a request to change it and engines restart: an engine that is
started again loads its adapters before workers are sent its address. Loading and unloading happen one after another.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from plugserve.core.errors import ConfigError, EngineUnavailableError, RequestError
from plugserve.core.settings.model_entries import ModelEntry
from plugserve.core.settings.settings import Settings
from plugserve.core.wire.messages import (
    AdapterCall,
    AdapterInfo,
    AdapterLoaded,
    AdapterReply,
    Adapters,
    LoadAdapter,
    UnloadAdapter,
)

log = logging.getLogger(__name__)

_FILES: Final = ("adapter_config.json", "adapter_model.safetensors")
_MOST_CALLS: Final = 16  # that wait in the queue
_LOAD_S: Final = 90.0  # for the engine to answer; it limits reading itself
_HEARD_S: Final = 5.0  # how long workers may take to note a change
_MAX_NAME: Final = 256
_MOST_ADAPTERS: Final = 1024  # by name; --max-cpu-loras bounds those in host memory


@dataclass(frozen=True, slots=True)
class AdapterTransport:
    """Sends messages to engines and workers. to_engines sends to all engines of a model and returns the identities of
    those; it raises EngineUnavailableError where none is up. to_one sends to the engine of an identity; to_workers
    returns the identities of the workers that will answer with AdaptersNoted."""

    to_engines: Callable[[str, msgspec.Struct], Awaitable[Sequence[bytes]]]
    to_one: Callable[[bytes, msgspec.Struct], Awaitable[None]]
    to_workers: Callable[[msgspec.Struct], Awaitable[Sequence[bytes]]]


class _Loading:
    """An adapter that engines read: the identities of those that have not answered, and what the others found wrong."""

    def __init__(self) -> None:
        self.waiting: set[bytes] = set()
        self.num_read = 0
        self.error = ""
        self.done = asyncio.Event()

    def note(self, identity: bytes, error: str) -> None:
        if identity in self.waiting:
            self.waiting.discard(identity)
            self.num_read += not error
            self.error = self.error or error
            self._settle()

    def lose(self, identity: bytes) -> None:
        """The engine has died; where it comes back, it loads what is listed then."""
        self.waiting.discard(identity)
        self._settle()

    def _settle(self) -> None:
        if not self.waiting:
            self.done.set()


class AdapterRegistry:
    """models are the served models by every name that requests may use for them."""

    def __init__(self, settings: Settings, models: Mapping[str, ModelEntry], transport: AdapterTransport) -> None:
        self._lora_dir = settings.lora_dir
        self._max_in_memory = settings.max_cpu_loras
        self._num_calls = 0
        self._models = models
        self._transport = transport
        self._adapters: dict[str, AdapterInfo] = {}
        self._ids = itertools.count(1)
        self._version = 0
        self._lock = asyncio.Lock()
        self._loading: dict[int, _Loading] = {}
        self._unheard: set[bytes] = set()
        self._heard = asyncio.Event()
        for module in settings.lora_modules:
            self._note_module(module)

    def _note_module(self, module: Mapping[str, str]) -> None:
        """An adapter of --lora-modules. Raises ConfigError."""
        try:
            _check_name(module["name"], self._models)
            model = self._base(module.get("base_model_name", ""))
        except RequestError as error:
            raise ConfigError(f"--lora-modules {module['name']}: {error}") from None
        folder = Path(os.path.expanduser(module["path"]))
        if not (folder / _FILES[0]).is_file():
            what = f"holds no {_FILES[0]}" if folder.is_dir() else "is not a folder"
            raise ConfigError(
                f"--lora-modules {module['name']}={module['path']}: {folder.absolute()} {what}; name the folder of an "
                "adapter as PEFT saves it"
            )
        self._adapters[module["name"]] = self._info(module["name"], module["path"], model)

    def _info(self, name: str, path: str, model: str) -> AdapterInfo:
        return AdapterInfo(id=next(self._ids), name=name, path=path, model=model, created=int(time.time()))

    def _base(self, asked: str) -> str:
        """The name of the model that an adapter is for. Raises RequestError (400)."""
        if asked:
            if asked not in self._models:
                raise RequestError(
                    f"base_model_name {asked!r} is not a served model; "
                    f"served models: {', '.join(sorted(self._models))}",
                    param="base_model_name",
                )
            return self._models[asked].name
        names = sorted({source.name for source in self._models.values()})
        if len(names) > 1:
            raise RequestError(
                f"several models are served: name the adapter's with base_model_name, one of {', '.join(names)}",
                param="base_model_name",
            )
        return names[0]

    # ---- engines

    async def bring_up(self, model: str, engine: bytes, *, is_first: bool) -> str:
        """Load the adapters of a fresh engine, given by its identity. Returns why the first start can't succeed, or "";
        later, what can't be loaded any more is dropped with one log line, and those beyond --max-cpu-loras are read
        when requests name them."""
        async with self._lock:
            infos = [info for info in self._adapters.values() if info.model == model]
            for index, info in enumerate(infos):
                is_deferred = not is_first and index >= self._max_in_memory
                folder = Path(os.path.expanduser(info.path)).absolute()
                error = await self._load(info, folder, is_deferred=is_deferred, engine=engine)
                if error and is_first:
                    return f"--lora-modules {info.name}={info.path}: {error}"
                if error:
                    log.error("adapter dropped name=%s path=%s error=%s", info.name, info.path, error)
                    del self._adapters[info.name]
                else:
                    log.info("adapter loaded name=%s path=%s model=%s", info.name, info.path, model)
            if not is_first:
                await self._publish()
        return ""

    async def _load(
        self, info: AdapterInfo, folder: Path, *, is_deferred: bool = False, engine: bytes | None = None
    ) -> str:
        """Have the model's engines (or the one of an identity) read an adapter; returns what is wrong with it, or "".
        Raises EngineUnavailableError."""
        loading = self._loading[info.id] = _Loading()
        try:
            message = LoadAdapter(id=info.id, name=info.name, path=str(folder), is_deferred=is_deferred)
            if engine is None:
                loading.waiting |= set(await self._transport.to_engines(info.model, message))
            else:
                loading.waiting.add(engine)
                await self._transport.to_one(engine, message)
            async with asyncio.timeout(_LOAD_S):
                await loading.done.wait()
        except TimeoutError:
            log.error("the engine of %s did not answer in %.0f s about adapter name=%s", info.model, _LOAD_S, info.name)
            return f"it was not read in {_LOAD_S:.0f} s"
        finally:
            del self._loading[info.id]
        if loading.error and loading.num_read:
            await self._forget(info)  # some of the engines have read it
        if not loading.error and not loading.num_read:
            raise EngineUnavailableError("The engine stopped while it read the adapter; try again.")
        return loading.error

    def note_loaded(self, engine: bytes, message: AdapterLoaded) -> None:
        """The engine of an identity has read an adapter, or could not."""
        loading = self._loading.get(message.id)
        if loading is not None:
            loading.note(engine, message.error)

    def note_engine_down(self, engine: bytes) -> None:
        """Don't wait for what this engine was reading."""
        for loading in self._loading.values():
            loading.lose(engine)

    # ---- workers

    @property
    def news(self) -> Adapters:
        """The message that holds the current list."""
        return Adapters(self._version, list(self._adapters.values()))

    async def _publish(self) -> None:
        """Send the list to every worker, and wait until all have noted it."""
        self._version += 1
        self._heard.clear()
        self._unheard = set(await self._transport.to_workers(self.news))
        try:
            async with asyncio.timeout(_HEARD_S):
                while self._unheard:
                    await self._heard.wait()
                    self._heard.clear()
        except TimeoutError:
            log.warning("workers have not noted the adapters in %.0f s count=%d", _HEARD_S, len(self._unheard))

    def note_heard(self, identity: bytes, version: int | None = None) -> None:
        """A worker has confirmed a version of the list, or (None) has died."""
        if version is None or version == self._version:
            self._unheard.discard(identity)
            self._heard.set()

    async def answer(self, call: AdapterCall) -> AdapterReply:
        """Handle a client's call that a worker forwards."""
        self._num_calls += 1
        try:
            if self._num_calls > _MOST_CALLS:
                raise EngineUnavailableError(f"{_MOST_CALLS} changes of adapters are under way; try again in a moment.")
            async with self._lock:
                await (self._load_for(call) if call.path else self._unload_for(call))
        except RequestError as error:
            return AdapterReply(
                call_id=call.call_id,
                status=error.status,
                error=str(error),
                code=error.code or "",
                param=error.param or "",
            )
        except EngineUnavailableError as error:
            return AdapterReply(call_id=call.call_id, status=503, error=str(error))
        finally:
            self._num_calls -= 1
        return AdapterReply(call_id=call.call_id)

    async def _load_for(self, call: AdapterCall) -> None:
        old = self._adapters.get(call.name)
        if old is not None and not call.is_replacement:
            raise RequestError(
                f"The LoRA adapter {call.name!r} has already been loaded; unload it first, or set load_inplace.",
                code="adapter_already_loaded",
                param="lora_name",
            )
        _check_name(call.name, self._models)
        model = self._base(call.model or ("" if old is None else old.model))
        if old is None and len(self._adapters) >= _MOST_ADAPTERS:
            raise RequestError(
                f"{_MOST_ADAPTERS} LoRA adapters are loaded, as many as a server lists: unload one first.",
                code="too_many_adapters",
                param="lora_name",
            )
        shown, folder = adapter_folder(call.path, self._lora_dir)
        info = self._info(call.name, shown, model)
        error = await self._load(info, folder)
        if error:
            raise RequestError(f"The LoRA adapter {call.name!r} can't be loaded: {error}", code="bad_adapter")
        self._adapters[call.name] = info
        await self._publish()
        if old is not None:
            await self._forget(old)
        log.info("adapter loaded name=%s path=%s model=%s", info.name, info.path, info.model)

    async def _unload_for(self, call: AdapterCall) -> None:
        info = self._adapters.pop(call.name, None)
        if info is None:
            raise RequestError(
                f"The LoRA adapter {call.name!r} cannot be found; GET /v1/models lists what is loaded.",
                status=404,
                code="adapter_not_found",
                param="lora_name",
            )
        await self._publish()
        await self._forget(info)
        log.info("adapter unloaded name=%s", info.name)

    async def _forget(self, info: AdapterInfo) -> None:
        try:
            await self._transport.to_engines(info.model, UnloadAdapter(id=info.id))
        except EngineUnavailableError:
            return  # it died with what it had loaded


def _check_name(name: str, models: Mapping[str, Any]) -> None:
    if not name.strip() or len(name) > _MAX_NAME or not name.isprintable():
        raise RequestError(
            f"lora_name must be a printable name of at most {_MAX_NAME} characters, got {name[:40]!r}",
            param="lora_name",
        )
    if name in models:
        raise RequestError(f"{name!r} is the name of a model; give the adapter another one", param="lora_name")


def adapter_folder(given: str, lora_dir: str | None) -> tuple[str, Path]:
    """The folder of an adapter that a client names, as it is shown and with symbolic links resolved: in --lora-dir, to
    which relative paths belong. Raises RequestError (400; 404 where there is nothing)."""
    if lora_dir is None:
        raise RequestError(
            "Adapters can't be loaded through the API: the server was started without --lora-dir, the folder below "
            "which they must lie.",
            code="lora_dir_not_set",
        )
    root = Path(os.path.expanduser(lora_dir)).absolute()
    path = root / given
    outside = RequestError(
        f"lora_path {given[:200]!r} lies outside of --lora-dir; adapters can only be loaded from there.",
        code="outside_lora_dir",
        param="lora_path",
    )
    try:
        folder = path.resolve()
        if not folder.is_relative_to(root.resolve()):
            raise outside
        if not folder.exists():
            raise RequestError(
                f"lora_path {given[:200]!r} does not exist.", status=404, code="adapter_not_found", param="lora_path"
            )
        if not all((folder / file).resolve().is_relative_to(root.resolve()) for file in _FILES):
            raise outside
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, a loop of links
        reason = error.strerror if isinstance(error, OSError) else error
        raise RequestError(f"lora_path can't be used: {reason}", code="bad_path", param="lora_path") from None
    return given if Path(given).is_absolute() else str(path), folder
