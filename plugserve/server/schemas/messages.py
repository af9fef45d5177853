"""The bodies of POST /v1/messages and /v1/messages/count_tokens (Anthropic's), and how they become a chat body."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from plugserve.core.errors import RequestError
from plugserve.server.schemas.common import Positive, shown, validated

_PASSED_ON: Final = (
    "model", "stream", "max_tokens", "temperature", "top_p", "top_k", "seed", "min_p", "min_tokens", "ignore_eos",
    "repetition_penalty", "stop_token_ids", "skip_special_tokens", "priority", "cache_salt", "chat_template_kwargs",
)  # fmt: skip
_WITHOUT_EFFECT: Final = frozenset({"service_tier", "cache_control", "inference_geo", "betas"})


def _is_given(value: Any) -> bool:
    return value not in (None, False, "", [], {})


def _asks_to_think(value: Any) -> bool:
    return _is_given(value) and not (isinstance(value, Mapping) and value.get("type") == "disabled")


def _asks_for_a_tool(value: Any) -> bool:
    return _is_given(value) and not (isinstance(value, Mapping) and value.get("type") in ("none", "auto"))


_NOT_SERVED: Final[Mapping[str, Callable[[Any], bool]]] = {
    "tools": _is_given,
    "tool_choice": _asks_for_a_tool,
    "thinking": _asks_to_think,
    "mcp_servers": _is_given,
    "container": _is_given,
    "context_management": _is_given,
    "output_config": _is_given,
    "output_format": _is_given,
}


class Metadata(BaseModel):
    model_config = ConfigDict(strict=True)

    user_id: str | None = None


class InputMessage(BaseModel):
    model_config = ConfigDict(strict=True)

    role: str
    content: Any


class CountBody(BaseModel):
    """What a conversation is made of. Content: a string or a list of text blocks."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: str | None = None
    messages: Annotated[list[InputMessage], Field(min_length=1, max_length=2**16)]
    system: Any = None


class MessagesBody(CountBody):
    max_tokens: Positive
    stop_sequences: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=1024)]], Field(max_length=64)] | None
    ) = None
    metadata: Metadata | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    stream: bool | None = None


def chat_body(schema: type[CountBody], body: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """body as the body of a chat request that asks for the same, and the names of the fields that nobody knows.

    A conversation that ends with the assistant's words is continued. Raises RequestError (400).
    """
    for name, asks_for_it in _NOT_SERVED.items():
        if asks_for_it(body.get(name)):
            raise RequestError(
                f"{name}: not supported at /v1/messages by this server, got {shown(body[name])}; leave it out.",
                code="unsupported_value",
                param=name,
            )
    parsed = validated(schema, body)
    messages = [_message(message, f"messages.{index}") for index, message in enumerate(parsed.messages)]
    if _is_given(parsed.system):
        messages.insert(0, {"role": "system", "content": _text(parsed.system, "system")})
    chat = {name: body[name] for name in _PASSED_ON if name in body}
    chat |= {"messages": messages, "continue_final_message": messages[-1]["role"] == "assistant"}
    if isinstance(parsed, MessagesBody):
        chat["stop"] = parsed.stop_sequences
        chat["user"] = parsed.metadata.user_id if parsed.metadata is not None else None
    known = {*MessagesBody.model_fields, *_PASSED_ON, *_NOT_SERVED, *_WITHOUT_EFFECT}
    return chat, sorted(set(body) - known)


def _message(message: InputMessage, path: str) -> dict[str, Any]:
    if message.role not in ("user", "assistant", "system"):
        raise RequestError(f"{path}.role: must be user or assistant, got {shown(message.role)}", param="messages")
    return {"role": message.role, "content": _text(message.content, f"{path}.content")}


def _text(content: Any, path: str) -> str:
    """A string, or the text of text blocks, which belong together without anything between them."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _bad(path, f"must be a string or a list of blocks, got {type(content).__name__}")
    return "".join(_block_text(block, f"{path}.{index}") for index, block in enumerate(content))


def _block_text(block: Any, path: str) -> str:
    if not isinstance(block, Mapping):
        raise _bad(path, f"must be an object with a type, got {type(block).__name__}")
    if block.get("type") != "text":
        raise _bad(f"{path}.type", f"blocks of type {shown(block.get('type'))} are not supported; send text")
    text = block.get("text")
    if not isinstance(text, str):
        raise _bad(f"{path}.text", f"must be a string, got {type(text).__name__}")
    return text


def _bad(path: str, message: str) -> RequestError:
    return RequestError(f"{path}: {message}", param=path.partition(".")[0])
