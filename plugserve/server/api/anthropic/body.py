"""The bodies of POST /v1/messages and /v1/messages/count_tokens (Anthropic's)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field

from plugserve.core.errors import RequestError
from plugserve.server.api.answer_rules import answer_rules
from plugserve.server.api.anthropic.anthropic_tools import chat_tool_choice, chat_tools, parallel_tool_calls
from plugserve.server.api.anthropic.blocks import chat_messages, text_of
from plugserve.server.api.chat.body import template_variables
from plugserve.server.api.generation_body import MAX_MESSAGES, GenerationFields
from plugserve.server.api.json_body import Refusals, is_given, refuse_unserved, shown, validated
from plugserve.server.pipeline.generation_request import Conversation, FieldNames, GenerationRequest
from plugserve.server.pipeline.sampling_fields import Positive

_WITHOUT_EFFECT: Final = frozenset({"service_tier", "cache_control", "inference_geo", "betas"})
_MIN_BUDGET: Final = 1024
_NOT_SERVED: Final[Refusals] = {
    "mcp_servers": is_given,
    "container": is_given,
    "context_management": is_given,
    "output_format": is_given,
}


class Metadata(BaseModel):
    model_config = ConfigDict(strict=True)

    user_id: str | None = None


class InputMessage(BaseModel):
    model_config = ConfigDict(strict=True)

    role: str
    content: Any


StopSequence = Annotated[str, Field(min_length=1, max_length=1024)]


class CountBody(BaseModel):
    """The fields of a conversation. Content: a string or a list of blocks (text, tool_use, tool_result, thinking)."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: str | None = None
    messages: Annotated[list[InputMessage], Field(min_length=1, max_length=MAX_MESSAGES), FailFast()]
    system: Any = None
    tools: Any = None
    tool_choice: Any = None
    thinking: Any = None
    chat_template_kwargs: dict[str, Any] | None = None

    def conversation(self, effort: str | None = None, max_tokens: int | None = None) -> Conversation:
        """One that ends with the assistant's words is continued. max_tokens bounds the budget of thinking; None leaves
        that unchecked. Raises RequestError (400)."""
        messages = chat_messages([(message.role, message.content) for message in self.messages])
        is_continued = messages[-1]["role"] == "assistant"
        if is_given(self.system):
            messages.insert(0, {"role": "system", "content": text_of(self.system, "system")})
        variables = _thinking_variables(self.thinking, max_tokens) | (self.chat_template_kwargs or {})
        return Conversation(
            messages=messages,
            tools=chat_tools(self.tools),
            tool_choice=chat_tool_choice(self.tool_choice, self.tools),
            continue_final_message=is_continued,
            template_kwargs=template_variables(effort, variables),
        )


class MessagesBody(GenerationFields, CountBody):
    max_tokens: Positive
    stop_sequences: Annotated[list[StopSequence] | None, Field(max_length=64), FailFast()] = None
    metadata: Metadata | None = None
    output_config: Any = None

    def request(self) -> GenerationRequest:
        """Raises RequestError (400) for fields that don't go together."""
        output = _OutputConfig.read(self.output_config)
        conversation = self.conversation(output.effort, self.max_tokens)
        tools, grammar = answer_rules(
            conversation.tools,
            conversation.tool_choice,
            parallel_tool_calls(self.tool_choice),
            output.response_format,
            format_field="output_config.format.schema",
        )
        return replace(
            self.base_request(conversation, FieldNames("messages")),
            max_new_tokens=self.max_tokens,
            stop=self.stop_sequences or (),
            grammar=grammar,
            tools=tools,
            needs_thinking=isinstance(self.thinking, Mapping) and self.thinking.get("type") == "enabled",
            user=(self.metadata.user_id if self.metadata is not None else None) or "",
        )


Body = TypeVar("Body", bound=CountBody)


def parse_messages(schema: type[Body], body: Mapping[str, Any]) -> tuple[Body, list[str]]:
    """body as an object of schema, and the names of unrecognised fields. Raises RequestError (400)."""
    refuse_unserved(body, _NOT_SERVED, " at /v1/messages")
    parsed = validated(schema, body)
    return parsed, sorted(body.keys() - MessagesBody.model_fields.keys() - _NOT_SERVED.keys() - _WITHOUT_EFFECT)


def _thinking_variables(thinking: Any, max_tokens: int | None) -> dict[str, Any]:
    """thinking as variables of the chat template. Raises RequestError (400)."""
    if thinking is None:
        return {}
    kind = thinking.get("type") if isinstance(thinking, Mapping) else None
    if kind not in ("enabled", "disabled", "adaptive"):
        raise RequestError(
            f"thinking.type: must be enabled, disabled or adaptive, got {shown(thinking)}", param="thinking"
        )
    budget = thinking.get("budget_tokens")
    if kind == "enabled" and max_tokens is not None:
        if type(budget) is not int or budget < _MIN_BUDGET:
            raise RequestError(
                f"thinking.budget_tokens: must be at least {_MIN_BUDGET}, got {shown(budget)}", param="thinking"
            )
        if budget >= max_tokens:
            raise RequestError(
                f"thinking.budget_tokens: must be below max_tokens ({max_tokens}), got {budget}",
                param="thinking",
            )
    return {} if kind == "adaptive" else {"enable_thinking": kind == "enabled", "thinking": kind == "enabled"}


@dataclass(frozen=True, slots=True)
class _OutputConfig:
    """output_config's effort and format, in a chat's terms."""

    effort: str | None = None
    response_format: dict[str, Any] | None = None

    @classmethod
    def read(cls, config: Any) -> _OutputConfig:
        """Raises RequestError (400)."""
        if config is None:
            return cls()
        if not isinstance(config, Mapping):
            raise RequestError(f"output_config: must be an object, got {shown(config)}", param="output_config")
        unknown = next((name for name, value in config.items() if name not in ("effort", "format") and value), None)
        if unknown is not None:
            raise RequestError(f"output_config.{unknown}: not supported by this server", param="output_config")
        effort, format = config.get("effort"), config.get("format")
        if effort not in (None, "low", "medium", "high", "xhigh", "max"):
            raise RequestError(
                f"output_config.effort: must be low, medium, high, xhigh or max, got {shown(effort)}",
                param="output_config",
            )
        if format is None:
            return cls(effort)
        if not isinstance(format, Mapping) or format.get("type") != "json_schema":
            raise RequestError(
                f"output_config.format.type: must be json_schema, got {shown(format)}", param="output_config"
            )
        schema = {"name": "answer", "schema": format.get("schema")}
        return cls(effort, {"type": "json_schema", "json_schema": schema})
