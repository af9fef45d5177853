"""What differs between the endpoints that generate, as data and small functions; exchange.py does what they share."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

from plugserve.server.api.anthropic import body as messages
from plugserve.server.api.anthropic.format import MessagesFormat, MessagesStream
from plugserve.server.api.chat import body as chat
from plugserve.server.api.completions import body as completion
from plugserve.server.api.formats import AnswerFormat, ChatFormat, CompletionFormat, Format, ResponseFacts
from plugserve.server.api.generation_body import GenerationBody, parse_body
from plugserve.server.api.structured_fields import wanted_grammar
from plugserve.server.api.tools import ToolPlan, plan_tools
from plugserve.server.pipeline.generation import Generation
from plugserve.server.pipeline.prompts import Prompt, chat_prompts, completion_prompts
from plugserve.server.pipeline.sampling_params import Limits
from plugserve.server.pipeline.streaming import Events, EventStream
from plugserve.server.text.grammars import GrammarSource
from plugserve.server.worker.served_models import TextSide


@dataclass(frozen=True, slots=True)
class Parsed:
    """A body that was understood. ignored: names of fields that nobody knows. default_new_tokens None means "what the
    context leaves"; tokens_field and prompt_field are what the client calls the limit and the prompt; grammar is what
    the answer must match (after its thinking); tells_reasoning: thinking is part of the answer; needs_thinking: the
    client insists on a model that thinks."""

    body: GenerationBody
    ignored: list[str]
    num_new_tokens: int | None
    default_new_tokens: int | None
    tokens_field: str
    prompt_field: str
    num_logprobs: int | None
    echo: bool
    grammar: GrammarSource | None = None
    tools: ToolPlan | None = None
    tells_reasoning: bool = True
    needs_thinking: bool = False

    def with_format_field(self, name: str) -> Parsed:
        """The same for a client that calls response_format's schema by another name."""
        if self.grammar is None or not self.grammar.field.startswith("response_format"):
            return self
        return replace(self, grammar=replace(self.grammar, field=name))


class Endpoint(Protocol):
    """One way to ask for text. operation is the GenAI convention's word."""

    operation: str
    id_prefix: str

    def parse(self, body: Mapping[str, Any]) -> Parsed:
        """Check a body. Raises RequestError (400)."""

    async def prompts(self, body: GenerationBody, text: TextSide, limits: Limits, pool: Executor) -> list[Prompt]:
        """The prompts that a body asks about. Raises RequestError (400)."""

    def format(self, facts: ResponseFacts) -> AnswerFormat: ...

    def event_stream(self, format: AnswerFormat, parsed: Parsed, generation: Generation) -> Events:
        """What writes the stream of one request; format is what this endpoint's format returned."""


def _openai_stream(format: AnswerFormat, parsed: Parsed, generation: Generation) -> EventStream:
    prompts = {job.choice.index: job.prompt_token_ids for job in generation.jobs}
    return EventStream(
        cast(Format, format),
        num_prompt_tokens=generation.num_prompt_tokens,
        prompt_token_ids=prompts if parsed.body.return_token_ids else {},
        usage_in_stream=parsed.body.usage_in_stream,
        usage_in_every_chunk=parsed.body.usage_in_every_chunk,
        num_cached_tokens=lambda: generation.usage.num_cached_tokens,
    )


def parsed_chat(
    body: chat.ChatBody, ignored: list[str], *, tokens_field: str, prompt_field: str, needs_thinking: bool = False
) -> Parsed:
    """What every chat has in common, whatever its client calls it. Raises RequestError (400)."""
    tools = plan_tools(body.tools, body.tool_choice, body.parallel_tool_calls)
    wanted = wanted_grammar(body)
    return Parsed(
        body,
        ignored,
        body.num_new_tokens,
        None,
        tokens_field,
        prompt_field,
        body.num_logprobs,
        echo=False,
        grammar=wanted if tools is None or tools.is_auto else tools.grammar,
        tools=tools,
        tells_reasoning=body.include_reasoning is not False,
        needs_thinking=needs_thinking,
    )


class ChatEndpoint:
    """POST /v1/chat/completions."""

    operation = "chat"
    id_prefix = "chatcmpl-"

    def parse(self, body: Mapping[str, Any]) -> Parsed:
        parsed, ignored = parse_body(chat.ChatBody, body, known=chat.KNOWN)
        chat.check_chat(parsed)
        field = "max_tokens" if parsed.max_completion_tokens is None else "max_completion_tokens"
        return parsed_chat(parsed, ignored, tokens_field=field, prompt_field="messages")

    async def prompts(self, body: GenerationBody, text: TextSide, limits: Limits, pool: Executor) -> list[Prompt]:
        assert isinstance(body, chat.ChatBody)
        return await chat_prompts(body, text, limits, pool)

    def format(self, facts: ResponseFacts) -> AnswerFormat:
        return ChatFormat(facts)

    def event_stream(self, format: AnswerFormat, parsed: Parsed, generation: Generation) -> Events:
        return _openai_stream(format, parsed, generation)


class CompletionEndpoint:
    """POST /v1/completions."""

    operation = "text_completion"
    id_prefix = "cmpl-"

    def parse(self, body: Mapping[str, Any]) -> Parsed:
        parsed, ignored = parse_body(completion.CompletionBody, body, known=completion.KNOWN)
        completion.check_completion(parsed)
        return Parsed(
            parsed,
            ignored,
            parsed.num_new_tokens,
            16,
            "max_tokens",
            "prompt",
            parsed.num_logprobs,
            echo=bool(parsed.echo),
            grammar=wanted_grammar(parsed),
        )

    async def prompts(self, body: GenerationBody, text: TextSide, limits: Limits, pool: Executor) -> list[Prompt]:
        assert isinstance(body, completion.CompletionBody)
        return await completion_prompts(body, text, limits, pool)

    def format(self, facts: ResponseFacts) -> AnswerFormat:
        return CompletionFormat(facts)

    def event_stream(self, format: AnswerFormat, parsed: Parsed, generation: Generation) -> Events:
        return _openai_stream(format, parsed, generation)


class MessagesEndpoint:
    """POST /v1/messages, Anthropic's: a chat in other words."""

    operation = "chat"
    id_prefix = "msg_"

    def parse(self, body: Mapping[str, Any]) -> Parsed:
        asked, ignored = messages.chat_body(messages.MessagesBody, body)
        parsed, _ = parse_body(chat.ChatBody, asked, known=chat.KNOWN)
        return parsed_chat(
            parsed,
            ignored,
            tokens_field="max_tokens",
            prompt_field="messages",
            needs_thinking=messages.asks_to_think(body.get("thinking")),
        ).with_format_field("output_config.format.schema")

    async def prompts(self, body: GenerationBody, text: TextSide, limits: Limits, pool: Executor) -> list[Prompt]:
        assert isinstance(body, chat.ChatBody)
        return await chat_prompts(body, text, limits, pool)

    def format(self, facts: ResponseFacts) -> AnswerFormat:
        return MessagesFormat(facts)

    def event_stream(self, format: AnswerFormat, parsed: Parsed, generation: Generation) -> Events:
        assert isinstance(format, MessagesFormat)
        return MessagesStream(format, lambda: generation.usage)
