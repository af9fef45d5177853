"""A model in this process, without a server (plugserve.LLM)."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar

import orjson
from tqdm import tqdm

from plugserve.core.contracts.engine_facts import EngineStats
from plugserve.core.contracts.requests import RequestView
from plugserve.core.errors import ConfigError, PartialFailureError, PlugserveError, RequestError
from plugserve.core.model_files.model_source import load_text_model
from plugserve.core.plugin_system.needed_plugins import check_needed_plugins
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings import Settings
from plugserve.core.settings.settings_reader import read_selection, read_settings
from plugserve.core.wire.messages import AdapterCall
from plugserve.offline.calls import (
    Call,
    LoRARequest,
    Message,
    Prompt,
    chat_call,
    completion_call,
    conversations,
    embedding_call,
    for_each,
    listed,
)
from plugserve.offline.local_server import LocalServer
from plugserve.offline.outputs import (
    EmbeddingOutput,
    EmbeddingRequestOutput,
    RequestOutput,
    completion_output,
    token_choices,
)
from plugserve.offline.sampling_params import SamplingParams
from plugserve.server.pipeline.generation_api import Answer
from plugserve.server.pipeline.prompts import Prompt as TokenPrompt
from plugserve.server.pipeline.prompts import echo_of
from plugserve.server.pipeline.request_seeds import RequestSeeds
from plugserve.server.pipeline.sampling_fields import NO_SAMPLING
from plugserve.server.pipeline.served_request import Prepared
from plugserve.server.supervisor.main import start_table

log = logging.getLogger(__name__)

_LEAST_WINDOW: Final = 256  # requests that are read at a time, so that an engine never waits for texts
Output = TypeVar("Output", RequestOutput, EmbeddingRequestOutput)
Errors = Literal["raise", "return"]
MakeOutput = Callable[[Call, Prepared, list[Answer], str], Awaitable[Output]]
Lora = LoRARequest | str
Params = SamplingParams | Sequence[SamplingParams]


class LLM:
    """Loads model (a folder, a GGUF file, a Hugging Face id; None: the embedded one) and answers in this process.

    settings are those of `plugserve serve`, with underscores: LLM("model", max_model_len=2048, dtype="float32").
    Settings of HTTP have no effect, and PLUGSERVE_ variables of the environment are not read.

    All requests of a call are batched; several threads may call at the same time. errors "raise": a call in which every
    request fails raises the first failure, one in which some fail PartialFailureError; "return": an output holds its
    failure. An interrupt (Ctrl-C) aborts what runs and is raised; the model stays loaded.

    close, or the end of a with statement, frees the model's memory. Raises UserError for a wrong setting or model.
    """

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        given = {**settings, "model": None if model is None else [str(model)]}
        host = PluginHost.load(read_selection([], {}, keywords=given))
        reading = read_settings(
            [],
            {},
            options=host.option_models(),
            active=host.active_names,
            installed=host.installed_names,
            keywords=given,
        )
        for line in (*reading.warnings, *host.warnings):
            log.warning("%s", line)
        settings_read = reading.settings
        if host.names("tool_parsers") and "enable_auto_tool_choice" not in reading.given:
            settings_read = settings_read.model_copy(update={"enable_auto_tool_choice": True})
        self._start(settings_read, host)

    def _start(self, settings: Settings, host: PluginHost) -> None:
        check_needed_plugins(settings, host)
        table = start_table(settings, host)
        if not table.preloaded:
            raise ConfigError("LLM answers with a model that loads at the start: name it, or pin it in models")
        self._settings = settings
        self._source = table.preloaded[0]
        self._window = max(_LEAST_WINDOW, 2 * settings.max_num_seqs)
        self._ids = itertools.count()
        self._seeds = RequestSeeds(settings.seed)
        self._adapter_paths: dict[str, str] = {}
        self._server = LocalServer.start(settings, host, table)
        self._end = weakref.finalize(self, self._server.close)

    # ---- requests

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: Lora | Sequence[Lora] | None = None,
        priority: int | Sequence[int] = 0,
        errors: Errors = "raise",
    ) -> list[RequestOutput]:
        """Continue each prompt. sampling_params: one for all prompts, or one for each; None leaves the model's own
        (generation_config.json) and 16 tokens. Outputs come in the order of prompts."""
        given = listed(prompts)
        params, fields = self._per_request(sampling_params, lora_request, priority, len(given))
        calls = [self._seeded(completion_call(*parts)) for parts in zip(given, params, fields, strict=True)]
        return self._run(calls, _request_output, _failed_request, errors, "prompts" if use_tqdm else "")

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: Params | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: Lora | Sequence[Lora] | None = None,
        priority: int | Sequence[int] = 0,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: Any = None,
        errors: Errors = "raise",
    ) -> list[RequestOutput]:
        """Answer one conversation, or each of a list of them. sampling_params None leaves the model's own and all
        tokens that the context has room for."""
        given = conversations(messages)
        params, fields = self._per_request(sampling_params, lora_request, priority, len(given))
        shared = {
            "chat_template": chat_template,
            "chat_template_kwargs": None if chat_template_kwargs is None else dict(chat_template_kwargs),
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "tools": None if tools is None else list(tools),
            "tool_choice": tool_choice,
        }
        calls = [
            self._seeded(chat_call(one, of_one, {**shared, **own}))
            for one, of_one, own in zip(given, params, fields, strict=True)
        ]
        return self._run(calls, _request_output, _failed_request, errors, "prompts" if use_tqdm else "")

    def embed(
        self,
        texts: Prompt | Sequence[Prompt],
        *,
        pooling: str | None = None,
        normalize: bool | None = None,
        use_tqdm: bool = True,
        priority: int | Sequence[int] = 0,
        errors: Errors = "raise",
    ) -> list[EmbeddingRequestOutput]:
        """One vector a text, in their order; as /v1/embeddings gives it for the same pooling and normalize."""
        given = listed(texts)
        priorities = for_each(priority, len(given), "priority")
        shared = {"pooling": pooling, "normalize": normalize}
        calls = [
            embedding_call(text, {**shared, "priority": of_one}) for text, of_one in zip(given, priorities, strict=True)
        ]
        return self._run(calls, _embedding_output, _failed_embedding, errors, "texts" if use_tqdm else "")

    # ---- the model

    def get_tokenizer(self) -> Any:
        """The model's tokenizer and chat template as transformers' PreTrainedTokenizerFast."""
        from transformers import PreTrainedTokenizerFast  # heavy

        text = load_text_model(self._source, self._settings.chat_template)
        make: Any = PreTrainedTokenizerFast
        return make(tokenizer_object=text.tokenizer, chat_template=text.chat_template, **text.special_tokens)

    def get_default_sampling_params(self) -> SamplingParams:
        """The model's own parameters (generation_config.json); plugserve's where it has none."""
        text = self._server.run(_now(lambda: next(iter(self._server.state.models)).ready_text))
        return SamplingParams(**text.sampling_defaults)

    def stats(self) -> EngineStats:
        """The engine's counters since it was loaded."""
        return self._server.run(next(iter(self._server.state.models)).client.stats())

    def close(self) -> None:
        """Abort what runs and free the model's memory. Later calls raise EngineUnavailableError."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- running

    def _per_request(
        self,
        params: Params | None,
        lora: Lora | Sequence[Lora] | None,
        priority: int | Sequence[int],
        count: int,
    ) -> tuple[list[SamplingParams | None], list[dict[str, Any]]]:
        """Parameters, and the body's further fields, of each request. Loads adapters. Raises RequestError."""
        asked: list[Lora | None] = for_each(lora, count, "lora_request")
        adapters = [None if one is None else self._adapter(one) for one in asked]
        priorities = for_each(priority, count, "priority")
        fields = [{"model": name, "priority": of_one} for name, of_one in zip(adapters, priorities, strict=True)]
        return for_each(params, count, "sampling_params"), fields

    def _seeded(self, call: Call) -> Call:
        """call with a seed, so that those of LLM(seed=...) don't depend on which request is read first."""
        if "seed" not in call.body:
            call.body["seed"] = self._seeds.seeded(NO_SAMPLING).seed
        return call

    def _adapter(self, asked: Lora) -> str:
        """The name of a loaded adapter. Raises RequestError for one that can't be loaded."""
        if isinstance(asked, str):
            return asked
        if asked.lora_path and self._adapter_paths.get(asked.lora_name) != asked.lora_path:
            call = AdapterCall(call_id=0, name=asked.lora_name, path=asked.lora_path, is_replacement=True)
            reply = self._server.run(self._server.adapters.answer(call))
            if reply.error:
                raise RequestError(reply.error, status=reply.status, code=reply.code or None, param=reply.param or None)
            self._adapter_paths[asked.lora_name] = asked.lora_path
        return asked.lora_name

    def _run(
        self,
        calls: Sequence[Call],
        output: MakeOutput[Output],
        failed: Callable[[Call, str, PlugserveError], Output],
        errors: Errors,
        shown_as: str,
    ) -> list[Output]:
        with tqdm(total=len(calls), desc=f"Processed {shown_as}", disable=not shown_as, dynamic_ncols=True) as bar:
            outputs = self._server.run(self._all(calls, output, failed, _Progress(bar)))
        failures = [one for one in outputs if one.error is not None]
        if failures and errors == "raise":
            raise _failure(outputs, failures)
        return outputs

    async def _all(
        self,
        calls: Sequence[Call],
        output: MakeOutput[Output],
        failed: Callable[[Call, str, PlugserveError], Output],
        progress: _Progress,
    ) -> list[Output]:
        """Every call's output, in order; a bounded number of them is read at a time."""
        window = asyncio.Semaphore(self._window)

        async def one(call: Call, id: str) -> Output:
            view = RequestView(id, call.path, "POST", {}, "", model=call.body.get("model"))
            answers: list[Answer] = []
            async with window:
                try:
                    prepared, answers = await self._server.requests.answers(call.api, view, call.body)
                    made = await output(call, prepared, answers, id)
                except PlugserveError as error:
                    made = failed(call, id, error)
                progress.note(answers)
                return made

        tasks = [asyncio.create_task(one(call, str(next(self._ids)))) for call in calls]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()


class _Progress:
    """The bar of one call, with the rate of generated tokens."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._started_s = time.perf_counter()
        self._num_tokens = 0

    def note(self, answers: Sequence[Answer]) -> None:
        """A request has ended."""
        self._num_tokens += sum(len(answer.piece.token_ids) for answer in answers)
        rate = self._num_tokens / max(time.perf_counter() - self._started_s, 1e-9)
        self._bar.set_postfix_str(f"{rate:.1f} tokens/s", refresh=False)
        self._bar.update()


async def _now(work: Callable[[], Any]) -> Any:
    """work's result, on the event loop."""
    return work()


async def _request_output(call: Call, prepared: Prepared, answers: list[Answer], id: str) -> RequestOutput:
    request, vocabulary = prepared.facts.request, prepared.facts.vocabulary
    prompt, text = answers[0].prompt_token_ids, call.text
    if text is None and "messages" in call.body:
        text = echo_of(TokenPrompt(prompt), vocabulary, skip_special_tokens=False).text
    count = request.num_prompt_logprobs
    of_prompt = None
    if count is not None and answers[0].prompt_logprobs is not None:
        of_prompt = [
            None if entry is None else token_choices(entry, vocabulary, count) for entry in answers[0].prompt_logprobs
        ]
    return RequestOutput(
        id,
        text,
        prompt,
        [completion_output(answer, vocabulary, request.num_logprobs) for answer in answers],
        prompt_logprobs=of_prompt,
        num_cached_tokens=prepared.generation.usage.num_cached_tokens,
    )


async def _embedding_output(call: Call, prepared: Prepared, answers: list[Answer], id: str) -> EmbeddingRequestOutput:
    writer = prepared.body.plain(prepared.facts)
    body = orjson.loads(await writer.answer(answers, prepared.generation.usage))
    return EmbeddingRequestOutput(id, EmbeddingOutput(body["data"][0]["embedding"]), answers[0].prompt_token_ids)


def _failed_request(call: Call, id: str, error: PlugserveError) -> RequestOutput:
    return RequestOutput(id, call.text, finished=False, error=error)


def _failed_embedding(call: Call, id: str, error: PlugserveError) -> EmbeddingRequestOutput:
    return EmbeddingRequestOutput(id, EmbeddingOutput([]), finished=False, error=error)


def _failure(outputs: Sequence[Output], failures: Sequence[Output]) -> PlugserveError:
    """The exception of a call in which failures failed."""
    first = failures[0].error
    assert first is not None
    if len(failures) == len(outputs):
        return first
    error = PartialFailureError(
        f"{len(failures)} of {len(outputs)} requests failed, the first is number {outputs.index(failures[0])}: {first} "
        '(outputs holds the others\' answers; errors="return" returns them)',
        outputs,
    )
    error.__cause__ = first
    return error
