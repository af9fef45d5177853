"""The shared state of one worker's routes. Passed to build_app and found at request.app.ctx.state; no globals."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import Executor
from contextlib import AbstractContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

from sanic import Request

from plugserve.core.contracts.requests import Identity, Refusal, RequestOutcome, RequestView
from plugserve.core.contracts.sampling import SamplingParams
from plugserve.core.errors import RequestError
from plugserve.core.plugin_system.plugin_guard import CallListener
from plugserve.server.api.responses.response_store import LocalResponseStore, ResponseStore
from plugserve.server.operations.access import Access
from plugserve.server.operations.live_feed import SharedAnswer
from plugserve.server.operations.live_sources import LiveSources, OwnSources
from plugserve.server.operations.liveness import Liveness, NullLiveness
from plugserve.server.operations.metrics import Metrics
from plugserve.server.operations.observers import NullTraceRecorder, TraceRecorder
from plugserve.server.operations.request_metrics import ModelMetrics
from plugserve.server.operations.requests_in_flight import RequestsInFlight
from plugserve.server.operations.service_limits import ServiceLimits
from plugserve.server.operations.tracing.tracer import NullTracer, Tracer
from plugserve.server.operations.worker_notes import OwnNotes, WorkerNotes
from plugserve.server.pipeline.answer_settings import AnswerSettings
from plugserve.server.pipeline.limits import Limits
from plugserve.server.pipeline.request_seeds import RequestSeeds
from plugserve.server.text.text_threads import TextThreads
from plugserve.server.worker.adapter_models import ControlAdapters
from plugserve.server.worker.model_control import ModelControl
from plugserve.server.worker.served_models import ServedModel, ServedModels, TextSide

if TYPE_CHECKING:
    from plugserve.server.batches.service import BatchService

_START_S: Final = 10.0
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
Result = TypeVar("Result")


class Hooks(Protocol):
    """The part of plugserve.core.plugin_system.plugin_host.PluginHost that routes use."""

    @property
    def errors(self) -> Mapping[tuple[str, str], int]: ...

    @property
    def calls(self) -> Mapping[tuple[str, str], int]: ...

    @property
    def seconds(self) -> Mapping[tuple[str, str], float]: ...

    def report(self, inspect: bool = False) -> Any: ...

    def watch(self, listener: CallListener) -> None: ...

    async def authorize(self, request: RequestView) -> Refusal | Identity | None: ...

    async def sampling_params(
        self, request: RequestView, params: SamplingParams, num_choices: int, num_prompts: int
    ) -> SamplingParams: ...

    async def request_ended(self, request: RequestView, outcome: RequestOutcome) -> None: ...

    async def request_received(self, request: RequestView) -> Mapping[str, Any] | None: ...

    async def observe_async(self, hook_name: str, **arguments: Any) -> None: ...


class ServerState:
    """The shared objects of one worker, and the count of requests in flight. batches, set by the worker, are files and
    batches of clients; None where none are stored."""

    def __init__(
        self,
        *,
        models: ServedModels,
        hooks: Hooks,
        version: str,
        max_logprobs: int = 20,
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
        pool: Executor | None = None,
        model_control: ModelControl | None = None,
        access: Access | None = None,
        limits: ServiceLimits | None = None,
        responses: ResponseStore | None = None,
        recorder: TraceRecorder | None = None,
        adapters: ControlAdapters | None = None,
        liveness: Liveness | None = None,
        seeds: RequestSeeds | None = None,
        answers: AnswerSettings | None = None,
        root_path: str = "",
        live: LiveSources | None = None,
        serves_page: bool = True,
    ) -> None:
        self.models = models
        self.hooks = hooks
        self.version = version
        self.max_logprobs = max_logprobs
        self.metrics = metrics if metrics is not None else Metrics()
        self.tracer: Tracer = tracer if tracer is not None else NullTracer()
        hooks.watch(self.tracer.watching(self.metrics.plugins))
        self.pool = pool if pool is not None else TextThreads()
        self.access = access if access is not None else Access()
        self.limits = limits if limits is not None else ServiceLimits()
        self.responses: ResponseStore = responses if responses is not None else LocalResponseStore()
        self.recorder: TraceRecorder = recorder if recorder is not None else NullTraceRecorder()
        self.adapters = adapters
        self.model_control = model_control
        self.liveness: Liveness = liveness if liveness is not None else NullLiveness()
        self.seeds = seeds if seeds is not None else RequestSeeds()
        self.batches: BatchService | None = None
        self.answers = answers if answers is not None else AnswerSettings()
        self.root_path = root_path
        self.serves_page = serves_page
        self.live: LiveSources = live if live is not None else OwnSources(OwnNotes())
        self.live_snapshot = SharedAnswer()
        self.started = asyncio.Event()
        self.started.set()
        self._model_metrics: dict[str, ModelMetrics] = {}
        self.requests = RequestsInFlight("server")
        self._background: set[asyncio.Task[None]] = set()

    def metrics_of(self, model: str) -> ModelMetrics:
        """A served model's metrics, made on first use."""
        if model not in self._model_metrics:
            self._model_metrics[model] = self.metrics.of_model(model)
        return self._model_metrics[model]

    async def wait_until_started(self) -> None:
        """Wait, for a few seconds at most, until this worker has its models and the state of their engines. A worker
        that replaces another one gets requests at once, while its siblings and the engines are well."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_S):
                await self.started.wait()

    async def find_model(self, name: str | None) -> ServedModel:
        """The model called name, as ServedModels.find. A Hugging Face id joins the table first, where requests may name
        any."""
        try:
            return self.models.find(name)
        except RequestError as error:
            is_id = name is not None and _HUB_ID.fullmatch(name) is not None
            may_join = self.limits.downloads_models and self.model_control is not None
            if error.status != 404 or not is_id or not may_join:
                raise
        assert name is not None
        assert self.model_control is not None
        await self.model_control.add(name)
        return self.models.find(name)

    @asynccontextmanager
    async def text_of(self, name: str | None) -> AsyncIterator[tuple[TextSide, Limits]]:
        """The text side and the limits of the model called name, for a request that needs no engine."""
        await self.wait_until_started()
        model = await self.find_model(name)
        async with model.in_use(self.limits.load_timeout_s) as text:
            yield text, model.limits(self.max_logprobs)

    def notes(self) -> WorkerNotes:
        """What this worker tells the others of itself."""
        return self.live.own.now(self.num_in_flight, self.hooks)

    @property
    def num_in_flight(self) -> int:
        """Requests that this worker serves now."""
        return self.requests.count

    async def in_pool(self, work: Callable[[], Result]) -> Result:
        """Run work() in one of the tokeniser threads, off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)

    @property
    def is_stopping(self) -> bool:
        return self.requests.is_stopping

    def in_flight(self) -> AbstractContextManager[None]:
        """Count a request while it is served. Raises EngineUnavailableError (503) once the server is stopping."""
        return self.requests.counted()

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run work after the response, with no client waiting for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests and wait for those in flight, for at most grace_s."""
        try:
            async with asyncio.timeout(grace_s):
                await self.requests.ended()
                await asyncio.gather(*self._background, return_exceptions=True)
        except TimeoutError:
            return


def state_of(request: Request) -> ServerState:
    return cast(ServerState, request.app.ctx.state)
