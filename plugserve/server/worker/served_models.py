"""The models that this worker serves: names, tokenizer and template, and engine of each.

A model is in the table from the start; its text side (tokenizer, template, defaults) is attached when it is loaded, and
requests that name it before wait.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from plugserve.core.contracts.engine_facts import EngineInfo, EngineStats
from plugserve.core.errors import EngineUnavailableError, ModelNotLoadedError, RequestError, did_you_mean
from plugserve.core.settings.model_entries import ModelEntry
from plugserve.core.wire.messages import EngineDown, ModelCounts
from plugserve.server.api.json_body import shown
from plugserve.server.operations.service_limits import ServiceLimits
from plugserve.server.pipeline.limits import Limits
from plugserve.server.sandbox.fair_queue import ANONYMOUS, Sender
from plugserve.server.text.answer_parsers import AnswerParsers
from plugserve.server.text.detokenizer import Vocabulary
from plugserve.server.text.encoder_text import EncoderText
from plugserve.server.text.grammars import GrammarCompiler, GrammarSource
from plugserve.server.text.remote_tokenizer import RemoteTokenizer
from plugserve.server.worker.engine_client import EngineClient, unavailable_message
from plugserve.server.worker.request_gate import RequestGate

_MAX_NAME: Final = 256
_RETRY_S: Final = 5.0
_NO_LIMITS: Final = ServiceLimits()


class Template(Protocol):
    """A chat template that renders elsewhere (plugserve.server.text.chat_template.ChatTemplate)."""

    @property
    def is_given(self) -> bool:
        """False for a model without a chat template."""

    @property
    def takes_tools(self) -> bool:
        """The template has a place for tools."""

    async def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
        sender: Sender = ANONYMOUS,
    ) -> str: ...

    async def close(self) -> None: ...

    async def render_with(
        self, template: str, messages: list[dict[str, Any]], *, sender: Sender = ANONYMOUS, **arguments: Any
    ) -> str:
        """Render with the client's own template, in a separate process."""


@dataclass(frozen=True, slots=True)
class TextSide:
    """Converts between text and a model's tokens. encode takes long for long texts: call it off the event loop. encoder
    is set for models that generate nothing. max_new_tokens: the server's limit of every answer."""

    encode: Callable[..., list[int]]
    vocabulary: Vocabulary
    template: Template | None
    sampling_defaults: Mapping[str, Any]
    grammars: GrammarCompiler | None = None
    parsers: AnswerParsers = field(default_factory=AnswerParsers)
    remote: RemoteTokenizer | None = None
    encoder: EncoderText | None = None
    max_new_tokens: int | None = None

    async def compile_grammar(
        self, wanted: GrammarSource, answer_prefix: str | None, sender: Sender = ANONYMOUS
    ) -> str:
        """See GrammarCompiler.compile. answer_prefix is the part of the answer that the prompt holds: where the model
        thinks, wanted binds what comes after its thinking."""
        if self.grammars is None:
            raise RequestError(f"{wanted.field}: this model's answers can't be bound.", param=wanted.param)
        return await self.grammars.compile(replace(wanted, thinking=self.parsers.thinking(answer_prefix)), sender)

    async def close(self) -> None:
        """End its child processes."""
        if self.template is not None:
            await self.template.close()
        if self.grammars is not None:
            await self.grammars.close()
        if self.remote is not None:
            await self.remote.close()


class ServedModel:
    """One model. names: what /v1/models lists, the first of which answers carry; aliases: further names that requests
    may use.

    root is where its weights come from, parent the model that an adapter changes; metrics_name labels its metrics, and
    cache_key keeps its cached prefixes apart from its parent's. is_kept: the server is unhealthy while it can't serve,
    unless it was unloaded by a call; is_pinned: it is unloaded by a call only. index is its place in the table.
    """

    cache_key = ""

    def __init__(
        self,
        names: tuple[str, ...],
        client: EngineClient,
        aliases: tuple[str, ...] = (),
        *,
        index: int = 0,
        is_kept: bool = True,
        is_pinned: bool = True,
    ) -> None:
        self.names = names
        self.aliases = aliases
        self.client = client
        self.index = index
        self.is_kept = is_kept
        self.is_pinned = is_pinned
        self.created = int(time.time())
        self.root = client.model
        self.parent: str | None = None
        self.metrics_name = names[0]
        self.gate = RequestGate()
        self.news = EngineDown(model=client.model, state="loading", reason="")
        self.counts = ModelCounts()
        self.is_held = False
        self.ask: Callable[[], None] = lambda: None
        self._text: TextSide | None = None

    @property
    def owner(self) -> ServedModel:
        """The model whose engine serves this one: itself, or an adapter's base model."""
        return self

    @property
    def text(self) -> TextSide | None:
        """None until it is loaded."""
        return self._text

    @text.setter
    def text(self, text: TextSide | None) -> None:
        self._text = text

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def state(self) -> str:
        """ "unloaded", "loading", "up", "unloading", "failed" or "dead"."""
        if self.client.state == "up" and self.text is None:
            return "loading"
        if self.client.state == "up" and self.owner.is_held:
            return "unloading"
        return self.client.state

    @property
    def is_ready(self) -> bool:
        """A request can begin now."""
        return self.state == "up"

    @asynccontextmanager
    async def in_use(
        self, timeout_s: float | None = None, keep_alive_s: float | None = None
    ) -> AsyncIterator[TextSide]:
        """Its text side, for one request, during which it is not unloaded. Waits until it is loaded, for timeout_s at
        most. Raises EngineUnavailableError (503)."""
        owner = self.owner
        if owner.is_ready:
            owner.gate.begin()
        else:
            owner.ask_for_it()
            try:
                await owner.gate.wait(timeout_s)
            except TimeoutError:
                raise ModelNotLoadedError(
                    f"The model {self.name!r} was not loaded in {timeout_s:g} s (--model-load-timeout); try later.",
                    retry_s=_RETRY_S,
                ) from None
        owner.gate.keep_alive_s = keep_alive_s
        try:
            yield self.ready_text
        finally:
            owner.gate.end()

    def ask_for_it(self) -> None:
        """Have the model loaded, where it is not being loaded already. Raises EngineUnavailableError (503) where
        waiting is of no use."""
        left_s = self.news.retry_at_s - time.monotonic()
        if self.state == "failed" and left_s > 0:
            raise self.load_error(left_s)
        if self.state == "dead" or (self.state == "loading" and not self.waits):
            raise EngineUnavailableError(unavailable_message(self.name, self.state))
        self.ask()

    @property
    def waits(self) -> bool:
        """Requests wait while it loads; otherwise it loads with the server, which refuses them until it has started."""
        return self.news.waits

    def load_error(self, retry_s: float) -> ModelNotLoadedError:
        return ModelNotLoadedError(f"The model {self.name!r} could not be loaded: {self.news.reason}", retry_s=retry_s)

    def admit_waiting(self) -> None:
        """Let the requests that wait begin, if they can."""
        if self.is_ready:
            self.gate.admit_waiting()

    @property
    def ready_text(self) -> TextSide:
        """The model's text side. Raises EngineUnavailableError (503) while it is loading or its engine is not up."""
        if self.text is None or self.client.info is None or self.client.state != "up":
            raise EngineUnavailableError(unavailable_message(self.name, self.state))
        return self.text

    @property
    def vocabulary_fault(self) -> str:
        """One line where the tokenizer has more tokens than the weights, "" otherwise and before both are loaded."""
        info = self.client.info
        if info is None or self.text is None or self.text.vocabulary.num_tokens <= info.vocab_size:
            return ""
        return (
            f"the tokenizer of model={self.name} has {self.text.vocabulary.num_tokens} tokens, the model "
            f"{info.vocab_size}: prompts with others are refused, and they are never generated"
        )

    def limits(self, max_logprobs: int, service: ServiceLimits = _NO_LIMITS) -> Limits:
        """Only for a model that is ready."""
        info = self.client.info
        assert info is not None
        assert self.text is not None
        return Limits(
            info.max_model_len,
            info.vocab_size,
            max_logprobs,
            self.text.sampling_defaults,
            service.max_prompt_tokens,
            service.trusts_templates,
            self.text.max_new_tokens,
        )


class ServedEngine:
    """The plugserve.EngineHandle of a model, for plugins that add routes."""

    def __init__(self, client: EngineClient) -> None:
        self.model = client.model
        self._client = client

    @property
    def info(self) -> EngineInfo:
        if self._client.info is None:
            raise EngineUnavailableError(unavailable_message(self.model, self._client.state))
        return self._client.info

    def stats(self) -> EngineStats:
        return self._client.last_stats()


class ServedModels:
    """All models of a server, in the order of the command line; the first serves requests that name none. adapters are
    the LoRA adapters by name, which requests may ask for, too. requires_name: a request that names none is refused."""

    def __init__(self, models: Iterable[ServedModel] = (), *, requires_name: bool = False) -> None:
        self.requires_name = requires_name
        self._models: list[ServedModel] = []
        self._by_name: dict[str, ServedModel] = {}
        self.adapters: dict[str, ServedModel] = {}
        for model in models:
            self.add(model)

    def add(self, model: ServedModel) -> None:
        """Names come before aliases, and models that were added before come first."""
        self._models.append(model)
        self._index_names()

    def remove(self, model: ServedModel) -> None:
        self._models.remove(model)
        self._index_names()

    def _index_names(self) -> None:
        self._by_name = {}
        for model in self._models:
            for name in model.names:
                self._by_name.setdefault(name, model)
        for model in self._models:
            for name in model.aliases:
                self._by_name.setdefault(name, model)

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    @property
    def default_name(self) -> str:
        """The name of the model for requests that name none; "" while there is none."""
        return self._models[0].name if self._models else ""

    def find(self, name: str | None) -> ServedModel:
        """The model called name; the first one for None. Raises RequestError (404, or 400 for None where a name is
        required) or EngineUnavailableError."""
        if name is None and self.requires_name:
            raise RequestError("model: this field is required (--require-model).", code="missing", param="model")
        if not self._models:
            raise EngineUnavailableError("The server is still loading; try again in a moment.")
        if name is None:
            return self._models[0]
        model = self._by_name.get(name) or self.adapters.get(name)
        if model is None:
            known = [*self._by_name, *self.adapters]
            raise RequestError(
                f"The model {shown(name)} does not exist.{did_you_mean(name[:_MAX_NAME], known)} "
                "GET /v1/models lists the models.",
                status=404,
                code="model_not_found",
                param="model",
            )
        return model

    @property
    def state(self) -> str:
        """ "dead" when a model that is kept can't serve, "loading" until all of those answer, then "ok". Models that
        load on demand don't count, nor do those that a call has unloaded."""
        states = {model.state for model in self._models if model.is_kept}
        if states & {"dead", "failed"}:
            return "dead"
        return "ok" if self._models and "loading" not in states else "loading"


def served_model(entry: ModelEntry, client: EngineClient, index: int) -> ServedModel:
    """The model of an entry of the table, without its text side."""
    return ServedModel(
        entry.names,
        client,
        entry.aliases,
        index=index,
        is_kept=entry.is_pinned or entry.is_preloaded,
        is_pinned=entry.is_pinned,
    )
