"""The body of POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import Field, field_validator

from plugserve.core.errors import RequestError
from plugserve.server.api.generation_body import Count, GenerationBody, Positive, shown

KNOWN: Final[frozenset[str]] = frozenset()


_MAX_TEMPLATE: Final = 2**17


class ChatBody(GenerationBody):
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=2**16)]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Count | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: Annotated[str, Field(min_length=1, max_length=_MAX_TEMPLATE)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    include_reasoning: bool | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    echo: bool | None = None

    @field_validator("echo")
    @classmethod
    def _check_echo(cls, echo: bool | None) -> bool | None:
        if echo:
            raise ValueError("not supported for chat; use /v1/completions")
        return echo

    @property
    def num_new_tokens(self) -> int | None:
        """The client's limit, None for "what the context leaves"."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def template_kwargs(self) -> dict[str, Any] | None:
        """The chat template's variables, by the names that templates use for reasoning_effort."""
        if self.reasoning_effort is None:
            return self.chat_template_kwargs
        thinks = self.reasoning_effort != "none"
        effort = {"reasoning_effort": self.reasoning_effort, "enable_thinking": thinks, "thinking": thinks}
        return effort | (self.chat_template_kwargs or {})

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


def check_chat(body: ChatBody) -> None:
    """Rules between fields. Raises RequestError (400)."""
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs: needs logprobs to be true.", param="top_logprobs")
    if body.continue_final_message and body.add_generation_prompt:
        raise RequestError(
            "continue_final_message: can't be combined with add_generation_prompt; set one of them.",
            param="continue_final_message",
        )


def template_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as chat templates take them: every content a string (None for an assistant without one).

    Unknown fields and roles are kept. Raises RequestError (400) that names the message.
    """
    return [_template_message(message, f"messages.{index}") for index, message in enumerate(messages)]


def _template_message(message: Mapping[str, Any], path: str) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise _bad(f"{path}.role: must be a non-empty string, got {shown(role)}")
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(_part_text(part, f"{path}.content.{index}") for index, part in enumerate(content))
    elif content is None and message.get("tool_calls"):
        content = ""
    elif content is None and role != "assistant":
        raise _bad(f"{path}.content: a {shown(role)} message needs content")
    elif content is not None and not isinstance(content, str):
        raise _bad(f"{path}.content: must be a string or a list of parts, got {type(content).__name__}")
    calls = message.get("tool_calls")
    read = {**message, "role": role, "content": content}
    if calls:
        read["tool_calls"] = [
            _template_call(call, f"{path}.tool_calls.{index}") for index, call in _listed(calls, path)
        ]
    else:
        read.pop("tool_calls", None)  # templates ask whether the key is there
    return read


def _listed(calls: Any, path: str) -> Iterable[tuple[int, Any]]:
    if not isinstance(calls, list):
        raise _bad(f"{path}.tool_calls: must be a list, got {shown(calls)}")
    return enumerate(calls)


def _template_call(call: Any, path: str) -> dict[str, Any]:
    """A call of the history; templates want its arguments as an object, clients send them as JSON text."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise _bad(f"{path}.function: must be an object with a name, got {shown(function)}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments)
        except orjson.JSONDecodeError:
            arguments = function["arguments"]  # an answer that its limit cut off
    return {**call, "function": {**function, "arguments": arguments}}


def _part_text(part: Any, path: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise _bad(f"{path}: must be an object with a type, got {type(part).__name__}")
    kind = part.get("type")
    if kind not in ("text", "input_text", "output_text"):
        raise _bad(f"{path}.type: parts of type {shown(kind)} are not supported by this model; send text")
    text = part.get("text")
    if not isinstance(text, str):
        raise _bad(f"{path}.text: must be a string, got {type(text).__name__}")
    return text


def _bad(message: str) -> RequestError:
    return RequestError(message, param="messages")
