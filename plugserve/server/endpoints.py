"""What differs between the endpoints that generate, as data and small functions; exchange.py does what they share."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol, cast

from plugserve.server.formats import AnswerFormat, ChatFormat, CompletionFormat, Format, ResponseFacts
from plugserve.server.generation import Generation
from plugserve.server.grammars import GrammarSource
from plugserve.server.messages_format import MessagesFormat, MessagesStream
from plugserve.server.prompts import Prompt, chat_prompts, completion_prompts
from plugserve.server.sampling import Limits
from plugserve.server.schemas import chat, completion, messages
from plugserve.server.schemas.common import GenerationBody, parse_body
from plugserve.server.schemas.structured import wanted_grammar
from plugserve.server.schemas.tools import ToolPlan, plan_tools
from plugserve.server.served_models import TextSide
from plugserve.server.streaming import Events, EventStream


@dataclass(frozen=True, slots=True)
class Parsed:
    """A body that was understood. ignored: names of fields that nobody knows. default_new_tokens None means "what the
    context leaves"; tokens_field and prompt_field are what the client calls the limit and the prompt; grammar is what
    the answer must match."""

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


class ChatEndpoint:
    """POST /v1/chat/completions."""

    operation = "chat"
    id_prefix = "chatcmpl-"

    def parse(self, body: Mapping[str, Any]) -> Parsed:
        parsed, ignored = parse_body(chat.ChatBody, body, known=chat.KNOWN)
        chat.check_chat(parsed)
        tools = plan_tools(parsed.tools, parsed.tool_choice, parsed.parallel_tool_calls)
        wanted = wanted_grammar(parsed)
        field = "max_tokens" if parsed.max_completion_tokens is None else "max_completion_tokens"
        return Parsed(
            parsed,
            ignored,
            parsed.num_new_tokens,
            None,
            field,
            "messages",
            parsed.num_logprobs,
            echo=False,
            grammar=wanted if tools is None or tools.is_auto else tools.grammar,
            tools=tools,
        )

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
        return Parsed(parsed, ignored, parsed.num_new_tokens, None, "max_tokens", "messages", None, echo=False)

    async def prompts(self, body: GenerationBody, text: TextSide, limits: Limits, pool: Executor) -> list[Prompt]:
        assert isinstance(body, chat.ChatBody)
        return await chat_prompts(body, text, limits, pool)

    def format(self, facts: ResponseFacts) -> AnswerFormat:
        return MessagesFormat(facts)

    def event_stream(self, format: AnswerFormat, parsed: Parsed, generation: Generation) -> Events:
        assert isinstance(format, MessagesFormat)
        return MessagesStream(format, lambda: generation.usage)
