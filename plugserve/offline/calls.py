"""Requests that a program makes, as bodies of the APIs over HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import Any, Final, TypeVar

from plugserve.core.errors import RequestError
from plugserve.offline.sampling_params import SamplingParams
from plugserve.server.api.chat.routes import ChatApi
from plugserve.server.api.completions.routes import CompletionApi
from plugserve.server.api.embeddings.routes import EmbeddingsApi
from plugserve.server.api.json_body import shown
from plugserve.server.pipeline.generation_api import CheckedBody, GenerationApi

Prompt = str | Sequence[int] | Mapping[str, Any]
"""A text, token ids, or either as {"prompt": TEXT} or {"prompt_token_ids": IDS}."""

Message = Mapping[str, Any]
Each = TypeVar("Each")

_PATHS: Final = {"chat": "/v1/chat/completions", "text_completion": "/v1/completions", "embeddings": "/v1/embeddings"}


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """An adapter to answer with; lora_path is its folder, "" for one that is loaded already. lora_int_id is not used:
    adapters are known by name."""

    lora_name: str
    lora_int_id: int = 0
    lora_path: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """One request. text is the prompt's, where the caller gave a text."""

    api: GenerationApi
    body: dict[str, Any]
    text: str | None = None

    @property
    def path(self) -> str:
        """The route that serves such a request."""
        return _PATHS[self.api.operation]


class _UnlimitedCompletionApi(CompletionApi):
    """Without max_tokens an answer may take all that the context leaves; over HTTP it gets 16 tokens."""

    async def read(self, body: Mapping[str, Any], owner: str) -> CheckedBody:
        checked = await super().read(body, owner)
        return replace(checked, request=replace(checked.request, default_new_tokens=None))


_CHAT: Final = ChatApi()
_COMPLETION: Final = CompletionApi()
_UNLIMITED: Final = _UnlimitedCompletionApi()
_EMBEDDINGS: Final = EmbeddingsApi()


def completion_call(prompt: Prompt, params: SamplingParams | None, fields: Mapping[str, Any]) -> Call:
    """Raises RequestError for a prompt of no known kind."""
    given = prompt_value(prompt)
    body = {"prompt": given, **fields, **({} if params is None else params.body())}
    is_unlimited = params is not None and params.max_tokens is None
    return Call(_UNLIMITED if is_unlimited else _COMPLETION, body, given if isinstance(given, str) else None)


def chat_call(messages: Sequence[Message], params: SamplingParams | None, fields: Mapping[str, Any]) -> Call:
    """Raises RequestError for messages that are no list of objects."""
    is_list = isinstance(messages, Sequence) and not isinstance(messages, str)
    if not is_list or not all(isinstance(one, Mapping) for one in messages):
        raise RequestError(
            f'messages: must be a list of objects such as {{"role": "user", "content": "Hi"}}, got {shown(messages)}',
            param="messages",
        )
    body = {**fields, **({} if params is None else params.body()), "messages": [dict(one) for one in messages]}
    count = body.pop("logprobs", None)
    if count is not None:
        body |= {"logprobs": True, "top_logprobs": count}
    return Call(_CHAT, body)


def embedding_call(prompt: Prompt, fields: Mapping[str, Any]) -> Call:
    """Raises RequestError for a prompt of no known kind."""
    return Call(_EMBEDDINGS, {"input": prompt_value(prompt), **fields})


def prompt_value(prompt: Prompt) -> str | list[int]:
    """A prompt as a body's field."""
    if isinstance(prompt, Mapping):
        found = prompt.get("prompt_token_ids", prompt.get("prompt"))
        if found is None or isinstance(found, Mapping):
            raise RequestError(
                f"prompt: must be a text, token ids, or an object with prompt or prompt_token_ids, got {shown(prompt)}",
                param="prompt",
            )
        return prompt_value(found)
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, Iterable):
        raise RequestError(f"prompt: must be a text, token ids or an object, got {shown(prompt)}", param="prompt")
    return [_token_id(one) for one in prompt]


def _token_id(value: Any) -> int:
    """value of any kind of integer, numpy's and torch's too."""
    try:
        return index(value)
    except TypeError:
        raise RequestError(f"prompt: token ids must be integers, got {shown(value)}", param="prompt") from None


def listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as a list; prompt_value refuses one of no known kind."""
    if isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
        return [prompts]
    several: list[Any] = list(prompts)
    return [several] if several and isinstance(several[0], int) else several


def conversations(messages: Sequence[Message] | Sequence[Sequence[Message]]) -> list[Sequence[Message]]:
    """One conversation or several, as a list; chat_call refuses one of no known kind."""
    several: Any = messages
    is_list = isinstance(several, Sequence) and not isinstance(several, str)
    return list(several) if is_list and not (several and isinstance(several[0], Mapping)) else [several]


def for_each(value: Each | Sequence[Each], count: int, name: str) -> list[Each]:
    """value for each of count requests: a list has one for each, another value is for all. Raises RequestError."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise RequestError(
            f"{name}: give one for all {count} requests or a list of {count}, got a list of {len(value)}"
        )
    return list(value)
