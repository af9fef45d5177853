"""The body of POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Final, Literal

from pydantic import FailFast, Field, field_validator

from plugserve.core.errors import RequestError
from plugserve.server.api.answer_rules import answer_rules
from plugserve.server.api.generation_body import MAX_MESSAGES, GenerationBody
from plugserve.server.pipeline.generation_request import Conversation, FieldNames, GenerationRequest
from plugserve.server.pipeline.sampling_fields import Count, Positive

_MAX_TEMPLATE: Final = 2**17


class ChatBody(GenerationBody):
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_MESSAGES), FailFast()]
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
    def conversation(self) -> Conversation:
        return Conversation(
            messages=self.messages,
            tools=self.tools,
            tool_choice=self.tool_choice,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=bool(self.continue_final_message),
            chat_template=self.chat_template,
            template_kwargs=template_variables(self.reasoning_effort, self.chat_template_kwargs),
        )

    def request(self) -> GenerationRequest:
        """Raises RequestError (400) for fields that don't go together."""
        self.check()
        newer = self.max_completion_tokens
        names = FieldNames("messages", "max_tokens" if newer is None else "max_completion_tokens", "top_logprobs")
        tools = grammar = None
        if self.tools or self.tool_choice is not None or self.is_structured:
            tools, grammar = answer_rules(
                self.tools,
                self.tool_choice,
                self.parallel_tool_calls,
                self.response_format,
                structured_outputs=self.structured_outputs,
            )
        return replace(
            self.base_request(self.conversation, names),
            max_new_tokens=self.max_tokens if newer is None else newer,
            num_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            grammar=grammar,
            tools=tools,
            shows_reasoning=self.include_reasoning is not False,
        )

    def check(self) -> None:
        """Rules between fields. Raises RequestError (400)."""
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs: needs logprobs to be true.", param="top_logprobs")
        if self.continue_final_message and self.add_generation_prompt:
            raise RequestError(
                "continue_final_message: can't be combined with add_generation_prompt; set one of them.",
                param="continue_final_message",
            )


def template_variables(effort: str | None, variables: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The chat template's variables, with the names that templates use for reasoning_effort."""
    if effort is None:
        return variables
    thinks = effort != "none"
    return {"reasoning_effort": effort, "enable_thinking": thinks, "thinking": thinks} | dict(variables or {})
