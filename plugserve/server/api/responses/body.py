"""The body of POST /v1/responses, and how it becomes a chat body."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from plugserve.core.errors import RequestError
from plugserve.server.api.generation_body import Penalty, Positive, shown, validated
from plugserve.server.api.responses.input_items import input_messages
from plugserve.server.api.responses.response_tools import (
    chat_tool_choice,
    chat_tools,
    reasoning_effort,
    response_format,
)

_PASSED_ON: Final = (
    "model", "stream", "temperature", "top_p", "user", "top_k", "seed", "min_p", "min_tokens", "ignore_eos", "stop",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "stop_token_ids", "skip_special_tokens", "priority",
    "cache_salt", "chat_template_kwargs",
)  # fmt: skip
_WITHOUT_EFFECT: Final = frozenset(
    {
        "service_tier", "prompt_cache_retention", "stream_options", "max_tool_calls",
    }
)  # fmt: skip


def _is_given(value: Any) -> bool:
    return value not in (None, False, "", [], {})


_NOT_SERVED: Final[Mapping[str, Callable[[Any], bool]]] = {
    "truncation": lambda value: value not in (None, "disabled"),
    "background": _is_given,
    "include": lambda value: _is_given(value) and value != ["reasoning.encrypted_content"],
    "top_logprobs": _is_given,
    "conversation": _is_given,
    "prompt": _is_given,
    "context_management": _is_given,
}


class ResponsesBody(BaseModel):
    """None means "not given". input: a string or a list of items."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: str | None = None
    input: Any = None
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: bool | None = None
    store: bool | None = None
    previous_response_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: Any = None
    reasoning: Any = None

    @property
    def is_stored(self) -> bool:
        return self.store is not False


def parse_responses(body: Mapping[str, Any]) -> tuple[ResponsesBody, dict[str, Any], list[str]]:
    """body checked; the body of a chat request that asks for the same, earlier turns aside; and the names of the
    fields that nobody knows. Raises RequestError (400)."""
    for name, asks_for_it in _NOT_SERVED.items():
        if asks_for_it(body.get(name)):
            raise RequestError(
                f"{name}: not supported at /v1/responses by this server, got {shown(body[name])}; leave it out.",
                code="unsupported_value",
                param=name,
            )
    parsed = validated(ResponsesBody, body)
    chat = {name: body[name] for name in _PASSED_ON if name in body}
    chat |= {
        "messages": input_messages(parsed.input),
        "max_completion_tokens": parsed.max_output_tokens,
        "tools": chat_tools(parsed.tools),
        "tool_choice": chat_tool_choice(parsed.tool_choice),
        "parallel_tool_calls": parsed.parallel_tool_calls,
        "response_format": response_format(parsed.text),
        "reasoning_effort": reasoning_effort(parsed.reasoning),
    }
    known = {*ResponsesBody.model_fields, *_PASSED_ON, *_NOT_SERVED, *_WITHOUT_EFFECT}
    return parsed, chat, sorted(set(body) - known)
