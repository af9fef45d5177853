"""The body of POST /v1/responses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Final

from pydantic import Field, field_validator

from plugserve.server.api.answer_rules import answer_rules
from plugserve.server.api.chat.body import template_variables
from plugserve.server.api.generation_body import GenerationFields, stop_strings
from plugserve.server.api.json_body import Refusals, is_given, refuse_unserved, validated
from plugserve.server.api.responses.input_items import input_messages
from plugserve.server.api.responses.response_tools import (
    chat_tool_choice,
    chat_tools,
    reasoning_effort,
    response_format,
)
from plugserve.server.pipeline.generation_request import Conversation, FieldNames, GenerationRequest
from plugserve.server.pipeline.sampling_fields import Positive

_WITHOUT_EFFECT: Final = frozenset({"service_tier", "prompt_cache_retention", "stream_options", "max_tool_calls"})
_NOT_SERVED: Final[Refusals] = {
    "truncation": lambda value: value not in (None, "disabled"),
    "background": is_given,
    "include": lambda value: is_given(value) and value != ["reasoning.encrypted_content"],
    "top_logprobs": is_given,
    "conversation": is_given,
    "prompt": is_given,
    "context_management": is_given,
}


class ResponsesBody(GenerationFields):
    """input: a string or a list of items."""

    input: Any = None
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    store: bool | None = None
    previous_response_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: Any = None
    reasoning: Any = None
    stop: Any = None
    chat_template_kwargs: dict[str, Any] | None = None

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, stop: Any) -> list[str]:
        return stop_strings(stop)

    @property
    def is_stored(self) -> bool:
        return self.store is not False

    def request(self, earlier: list[dict[str, Any]]) -> GenerationRequest:
        """earlier: the messages of the conversation that this request goes on from. Raises RequestError (400)."""
        tools, choice = chat_tools(self.tools), chat_tool_choice(self.tool_choice)
        messages = earlier + input_messages(self.input)
        system = [{"role": "system", "content": self.instructions}] if self.instructions else []
        effort = reasoning_effort(self.reasoning)
        conversation = Conversation(
            messages=system + messages,
            tools=tools,
            tool_choice=choice,
            template_kwargs=template_variables(effort, self.chat_template_kwargs),
        )
        plan, grammar = answer_rules(
            tools,
            choice,
            self.parallel_tool_calls,
            response_format(self.text),
            format_field="text.format.schema",
        )
        return replace(
            self.base_request(conversation, FieldNames("input", "max_output_tokens", "top_logprobs")),
            max_new_tokens=self.max_output_tokens,
            stop=self.stop or (),
            grammar=grammar,
            tools=plan,
            user=self.user or "",
            metadata=self.metadata or {},
        )


def parse_responses(body: Mapping[str, Any]) -> tuple[ResponsesBody, list[str]]:
    """body checked, and the names of unrecognised fields. Raises RequestError (400)."""
    refuse_unserved(body, _NOT_SERVED, " at /v1/responses")
    parsed = validated(ResponsesBody, body)
    return parsed, sorted(body.keys() - ResponsesBody.model_fields.keys() - _NOT_SERVED.keys() - _WITHOUT_EFFECT)
