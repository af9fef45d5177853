"""The body of POST /v1/responses, and how it becomes a chat body."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from plugserve.core.errors import RequestError
from plugserve.server.schemas.common import Penalty, Positive, shown, validated

_PASSED_ON: Final = (
    "model", "stream", "temperature", "top_p", "user", "top_k", "seed", "min_p", "min_tokens", "ignore_eos", "stop",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "stop_token_ids", "skip_special_tokens", "priority",
    "cache_salt", "chat_template_kwargs",
)  # fmt: skip
_WITHOUT_EFFECT: Final = frozenset(
    {
        "service_tier", "prompt_cache_retention", "stream_options",
        "max_tool_calls", "parallel_tool_calls", "reasoning",
    }
)  # fmt: skip


def _is_given(value: Any) -> bool:
    return value not in (None, False, "", [], {})


def _is_not_text(value: Any) -> bool:
    """text.format other than plain text; verbosity is a hint that changes nothing."""
    format = value.get("format") if isinstance(value, Mapping) else value
    return _is_given(format) and not (isinstance(format, Mapping) and format.get("type") == "text")


_NOT_SERVED: Final[Mapping[str, Callable[[Any], bool]]] = {
    "tools": _is_given,
    "tool_choice": lambda value: value not in (None, "none", "auto"),
    "text": _is_not_text,
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
    chat |= {"messages": input_messages(parsed.input), "max_completion_tokens": parsed.max_output_tokens}
    known = {*ResponsesBody.model_fields, *_PASSED_ON, *_NOT_SERVED, *_WITHOUT_EFFECT}
    return parsed, chat, sorted(set(body) - known)


def input_messages(input: Any) -> list[dict[str, Any]]:
    """Chat messages of an input: a string is what the user says. Raises RequestError (400)."""
    if input is None:
        raise RequestError("input: this field is required.", code="missing", param="input")
    if isinstance(input, str):
        return [{"role": "user", "content": input}]
    if not isinstance(input, list) or not input:
        raise _bad("input", "must be a string or a list of items that is not empty")
    return [_message(item, f"input.{index}") for index, item in enumerate(input)]


def _message(item: Any, path: str) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise _bad(path, f"must be an object, got {type(item).__name__}")
    if item.get("type", "message") != "message":
        raise _bad(f"{path}.type", f"items of type {shown(item['type'])} are not supported; send messages")
    role = item.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        raise _bad(f"{path}.role", f"must be user, assistant, system or developer, got {shown(role)}")
    content = item.get("content")
    if isinstance(content, list):
        content = "\n".join(_part_text(part, f"{path}.content.{index}") for index, part in enumerate(content))
    if not isinstance(content, str):
        raise _bad(f"{path}.content", f"must be a string or a list of parts, got {type(content).__name__}")
    return {"role": role, "content": content}


def _part_text(part: Any, path: str) -> str:
    if not isinstance(part, Mapping):
        raise _bad(path, f"must be an object with a type, got {type(part).__name__}")
    if part.get("type") not in ("input_text", "output_text", "text"):
        raise _bad(f"{path}.type", f"parts of type {shown(part.get('type'))} are not supported; send input_text")
    if not isinstance(part.get("text"), str):
        raise _bad(f"{path}.text", f"must be a string, got {type(part.get('text')).__name__}")
    return str(part["text"])


def _bad(path: str, message: str) -> RequestError:
    return RequestError(f"{path}: {message}", param="input")
