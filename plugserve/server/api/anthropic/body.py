"""The bodies of POST /v1/messages and /v1/messages/count_tokens (Anthropic's), and how they become a chat body."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from plugserve.core.errors import RequestError
from plugserve.server.api.anthropic.anthropic_tools import chat_tool_choice, chat_tools
from plugserve.server.api.anthropic.blocks import chat_messages, text_of
from plugserve.server.api.generation_body import Positive, shown, validated

_PASSED_ON: Final = (
    "model", "stream", "max_tokens", "temperature", "top_p", "top_k", "seed", "min_p", "min_tokens", "ignore_eos",
    "repetition_penalty", "stop_token_ids", "skip_special_tokens", "priority", "cache_salt", "chat_template_kwargs",
)  # fmt: skip
_WITHOUT_EFFECT: Final = frozenset({"service_tier", "cache_control", "inference_geo", "betas"})
_MIN_BUDGET: Final = 1024


def _is_given(value: Any) -> bool:
    return value not in (None, False, "", [], {})


_NOT_SERVED: Final[Mapping[str, Callable[[Any], bool]]] = {
    "mcp_servers": _is_given,
    "container": _is_given,
    "context_management": _is_given,
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
    """What a conversation is made of. Content: a string or a list of blocks (text, tool_use, tool_result, thinking)."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: str | None = None
    messages: Annotated[list[InputMessage], Field(min_length=1, max_length=2**16)]
    system: Any = None
    tools: Any = None
    tool_choice: Any = None
    thinking: Any = None


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
    output_config: Any = None


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
    messages = chat_messages([(message.role, message.content) for message in parsed.messages])
    if _is_given(parsed.system):
        messages.insert(0, {"role": "system", "content": text_of(parsed.system, "system")})
    chat = {name: body[name] for name in _PASSED_ON if name in body}
    chat |= {"messages": messages, "continue_final_message": messages[-1]["role"] == "assistant"}
    chat |= {"tools": chat_tools(parsed.tools), **chat_tool_choice(parsed.tool_choice, parsed.tools)}
    if isinstance(parsed, MessagesBody):
        chat["stop"] = parsed.stop_sequences
        chat["user"] = parsed.metadata.user_id if parsed.metadata is not None else None
        chat |= _output_config(parsed.output_config)
    variables = chat.get("chat_template_kwargs")
    if variables is None or isinstance(variables, Mapping):  # anything else is refused with the rest of the chat body
        chat["chat_template_kwargs"] = {**_thinking(parsed), **(variables or {})}
    known = {*MessagesBody.model_fields, *_PASSED_ON, *_NOT_SERVED, *_WITHOUT_EFFECT}
    return chat, sorted(set(body) - known)


def asks_to_think(thinking: Any) -> bool:
    """The client insists on thinking; "adaptive" leaves it to the model."""
    return isinstance(thinking, Mapping) and thinking.get("type") == "enabled"


def _thinking(parsed: CountBody) -> dict[str, Any]:
    """thinking as variables of the chat template. Raises RequestError (400)."""
    thinking = parsed.thinking
    if thinking is None:
        return {}
    kind = thinking.get("type") if isinstance(thinking, Mapping) else None
    if kind not in ("enabled", "disabled", "adaptive"):
        raise RequestError(
            f"thinking.type: must be enabled, disabled or adaptive, got {shown(thinking)}", param="thinking"
        )
    budget = thinking.get("budget_tokens")
    if kind == "enabled" and isinstance(parsed, MessagesBody):
        if type(budget) is not int or budget < _MIN_BUDGET:
            raise RequestError(
                f"thinking.budget_tokens: must be at least {_MIN_BUDGET}, got {shown(budget)}", param="thinking"
            )
        if budget >= parsed.max_tokens:
            raise RequestError(
                f"thinking.budget_tokens: must be below max_tokens ({parsed.max_tokens}), got {budget}",
                param="thinking",
            )
    return {} if kind == "adaptive" else {"enable_thinking": kind == "enabled", "thinking": kind == "enabled"}


def _output_config(config: Any) -> dict[str, Any]:
    """output_config.effort and .format as a chat's fields. Raises RequestError (400)."""
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        raise RequestError(f"output_config: must be an object, got {shown(config)}", param="output_config")
    unknown = next((name for name, value in config.items() if name not in ("effort", "format") and value), None)
    if unknown is not None:
        raise RequestError(f"output_config.{unknown}: not supported by this server", param="output_config")
    fields: dict[str, Any] = {}
    effort = config.get("effort")
    if effort is not None:
        if effort not in ("low", "medium", "high", "xhigh", "max"):
            raise RequestError(
                f"output_config.effort: must be low, medium, high, xhigh or max, got {shown(effort)}",
                param="output_config",
            )
        fields["reasoning_effort"] = effort
    format = config.get("format")
    if format is not None:
        if not isinstance(format, Mapping) or format.get("type") != "json_schema":
            raise RequestError(
                f"output_config.format.type: must be json_schema, got {shown(format)}", param="output_config"
            )
        fields["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": format.get("schema")},
        }
    return fields
