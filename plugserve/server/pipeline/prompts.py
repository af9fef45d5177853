"""A request's prompts: token ids, and the text where there is one."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import orjson

from plugserve.core.errors import RequestError
from plugserve.server.api.json_body import shown
from plugserve.server.pipeline.choice import Echo
from plugserve.server.pipeline.generation_request import Conversation, GenerationRequest, TextPairs, Texts
from plugserve.server.pipeline.limits import Limits, check_num_characters, check_prompt_length, check_token_ids
from plugserve.server.sandbox.fair_queue import ANONYMOUS, Sender
from plugserve.server.text.chat_template import PartedText
from plugserve.server.text.detokenizer import Vocabulary
from plugserve.server.text.text_threads import TextThreads
from plugserve.server.text.tools_as_text import messages_with_tools
from plugserve.server.worker.served_models import Template, TextSide

_TEMPLATE_TAIL = 200  # characters; what a template writes before an answer is shorter


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt. text is None for one that came as token ids; is_continued: the answer continues its last word;
    answer_prefix: the start of the answer that the prompt contains, None where the answer is plain text. block_hashes
    are those of its full blocks, where the engine has a prefix cache (see prompt_hashes). second_start is where the
    second text of a pair begins, 0 for none."""

    token_ids: list[int]
    text: str | None = None
    is_continued: bool = True
    answer_prefix: str | None = None
    block_hashes: bytes = b""
    second_start: int = 0


async def make_prompts(
    request: GenerationRequest, text: TextSide, limits: Limits, pool: Executor, sender: Sender = ANONYMOUS
) -> list[Prompt]:
    """All prompts of a request, in its order. Raises RequestError (400)."""
    given = request.prompts.texts if isinstance(request.prompts, TextPairs) else request.prompts
    if isinstance(given, Texts):
        return await _text_prompts(given, request, text, limits, pool)
    prompt = await conversation_prompt(given, text, limits, pool, sender)
    return [_cut(prompt, request, limits)]


# ---- conversations


async def conversation_prompt(
    conversation: Conversation, text: TextSide, limits: Limits, pool: Executor, sender: Sender = ANONYMOUS
) -> Prompt:
    """The prompt of a conversation, however long. Raises RequestError (400)."""
    if text.encoder is not None:
        raise RequestError("messages: this model is an encoder and reads texts; send one.", param="messages")
    if text.template is None:
        raise RequestError(
            "This model has no chat template: use /v1/completions, or start the server with --chat-template.",
            code="chat_template_missing",
        )
    is_continued = conversation.continue_final_message
    messages = _messages(conversation, text, text.template)
    check_num_characters(sum(len(message["content"] or "") for message in messages), limits, "messages")
    render = functools.partial(
        _renderer(conversation, text.template, limits),
        messages,
        continue_final_message=is_continued,
        tools=conversation.tools if conversation.tools and conversation.tool_choice != "none" else None,
        kwargs=conversation.template_kwargs,
        sender=sender,
    )
    given = conversation.add_generation_prompt
    rendered = await render(add_generation_prompt=not is_continued if given is None else given)
    prefix = ""
    if text.parsers.reasoning is not None:
        prefix = await answer_prefix(rendered, messages[-1], render, is_continued)
    token_ids = await _encode(rendered, text, limits, pool, "messages", add_special_tokens=False)
    return Prompt(token_ids, rendered, is_continued=is_continued, answer_prefix=prefix)


def _messages(conversation: Conversation, text: TextSide, template: Template) -> list[dict[str, Any]]:
    """The conversation for the template. One that has no place for tools gets them as text, where the model's answers
    are read as JSON (always, where a call is forced)."""
    messages = template_messages(conversation.messages)
    own, choice = conversation.chat_template, conversation.tool_choice
    takes_tools = template.takes_tools if own is None else "tools" in own
    is_forced = choice not in (None, "auto", "none")
    if takes_tools or not (is_forced or text.parsers.reads_json):
        return messages
    tools = conversation.tools if isinstance(conversation.tools, list) and choice != "none" else []
    return messages_with_tools(messages, tools, choice)


async def answer_prefix(
    rendered: str, last: Mapping[str, Any], render: Callable[..., Awaitable[str]], is_continued: bool
) -> str:
    """The start of the answer in rendered: the last message if it is continued, else the template's text after it.
    Where that message's text isn't unique, the conversation is rendered without it."""
    content = str(last.get("content") or "").strip()
    if is_continued:
        found = rendered.rfind(content)
        return rendered[found:] if found >= 0 else ""
    tail = rendered[-len(content) - _TEMPLATE_TAIL :]
    if content and tail.count(content) == 1:
        return tail.partition(content)[2]
    bare = await render(add_generation_prompt=False)
    return rendered[len(bare) :] if rendered.startswith(bare) else rendered[-_TEMPLATE_TAIL:]


def _renderer(conversation: Conversation, template: Template, limits: Limits) -> Callable[..., Awaitable[str]]:
    """The model's template, or the client's own one where the server trusts it. Raises RequestError (400)."""
    if conversation.chat_template is None:
        return template.render
    if not limits.trusts_templates:
        raise RequestError(
            "chat_template: not allowed by this server (--trust-request-chat-template allows it); leave it out.",
            code="unsupported_value",
            param="chat_template",
        )
    return functools.partial(template.render_with, conversation.chat_template)


def template_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as chat templates take them: every content a string (None for an assistant without one).

    Unknown fields and roles are kept. Raises RequestError (400) that names the message.
    """
    return [_template_message(message, f"messages.{index}") for index, message in enumerate(messages)]


def _template_message(message: Mapping[str, Any], path: str) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise _bad_message(f"{path}.role: must be a non-empty string, got {shown(role)}")
    content = message.get("content")
    if isinstance(content, list) and set(map(type, content)) == {str}:
        content = PartedText.of(content)
    elif isinstance(content, list):
        content = PartedText.of([_part_text(part, f"{path}.content.{index}") for index, part in enumerate(content)])
    elif content is None and message.get("tool_calls"):
        content = ""
    elif content is None and role != "assistant":
        raise _bad_message(f"{path}.content: a {shown(role)} message needs content")
    elif content is not None and not isinstance(content, str):
        raise _bad_message(f"{path}.content: must be a string or a list of parts, got {type(content).__name__}")
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
        raise _bad_message(f"{path}.tool_calls: must be a list, got {shown(calls)}")
    return enumerate(calls)


def _template_call(call: Any, path: str) -> dict[str, Any]:
    """A call of the history; templates want its arguments as an object, clients send them as JSON text."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise _bad_message(f"{path}.function: must be an object with a name, got {shown(function)}")
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
        raise _bad_message(f"{path}: must be an object with a type, got {type(part).__name__}")
    kind = part.get("type")
    if kind not in ("text", "input_text", "output_text"):
        raise _bad_message(f"{path}.type: parts of type {shown(kind)} are not supported by this model; send text")
    text = part.get("text")
    if not isinstance(text, str):
        raise _bad_message(f"{path}.text: must be a string, got {type(text).__name__}")
    return text


def _bad_message(message: str) -> RequestError:
    return RequestError(message, param="messages")


# ---- texts and token ids


async def _text_prompts(
    texts: Texts, request: GenerationRequest, text: TextSide, limits: Limits, pool: Executor
) -> list[Prompt]:
    name, with_special = request.names.prompt, texts.add_special_tokens
    prompts: list[Prompt] = []
    for given in texts.prompts:
        if isinstance(given, str):
            token_ids = await _encode(given, text, limits, pool, name, add_special_tokens=with_special)
            prompts.append(_cut(Prompt(token_ids, given), request, limits))
        else:
            cut = _cut(Prompt(given), request, limits)
            check_prompt_length(len(cut.token_ids), limits, name, is_pooled=bool(request.pooling))
            check_token_ids(cut.token_ids, limits.vocab_size, name)
            prompts.append(cut)
    return prompts


def _cut(prompt: Prompt, request: GenerationRequest, limits: Limits) -> Prompt:
    """The last truncate_prompt_tokens tokens of prompt; for -1 as many as the context and what is to be generated leave
    room for. Raises RequestError (400) for more than the context holds."""
    count = request.truncate_prompt_tokens
    if count is None:
        return prompt
    if count > limits.max_model_len:
        raise RequestError(
            f"truncate_prompt_tokens: must be at most {limits.max_model_len}, the model's context, got {count}",
            param="truncate_prompt_tokens",
        )
    if count == -1:
        room = limits.max_model_len - (0 if request.pooling else request.max_new_tokens or 1)
        count = max(1, min(limits.longest_prompt(is_pooled=bool(request.pooling)), room))
    if len(prompt.token_ids) <= count:
        return prompt
    return replace(prompt, token_ids=prompt.token_ids[-count:], text=None)


def echo_of(prompt: Prompt, vocabulary: Vocabulary, *, skip_special_tokens: bool) -> Echo:
    """The prompt as an answer repeats it."""
    detokenizer = vocabulary.detokenizer(skip_special_tokens=skip_special_tokens)
    offsets, text = [], ""
    for token_id in prompt.token_ids:
        offsets.append(len(text))
        text += detokenizer.push(token_id)
    text += detokenizer.flush()
    return Echo(text if prompt.text is None else prompt.text, prompt.token_ids, offsets)


def context_of(prompt: Prompt) -> Sequence[int]:
    """The prompt tokens that the answer's text continues; none for a separate text."""
    return prompt.token_ids if prompt.is_continued else ()


async def encode_text(
    prompt: str, text: TextSide, limits: Limits, pool: Executor, field_name: str, *, add_special_tokens: bool
) -> list[int]:
    """Tokenise in a thread, off the event loop. Raises RequestError (400) for a text that is too long for any
    tokenizer."""
    check_num_characters(len(prompt), limits, field_name)
    threads = pool.of_length(len(prompt)) if isinstance(pool, TextThreads) else pool
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(threads, lambda: text.encode(prompt, add_special_tokens=add_special_tokens))


async def _encode(
    prompt: str, text: TextSide, limits: Limits, pool: Executor, field_name: str, *, add_special_tokens: bool
) -> list[int]:
    """encode_text, but raises RequestError (400) for an empty prompt too, and for a token that the model lacks."""
    token_ids = await encode_text(prompt, text, limits, pool, field_name, add_special_tokens=add_special_tokens)
    if not token_ids:
        raise RequestError(f"{field_name}: must not be empty.", param=field_name)
    if len(token_ids) <= limits.max_model_len and max(token_ids) >= limits.vocab_size:  # longer ones are refused later
        stray = next(token_id for token_id in token_ids if token_id >= limits.vocab_size)
        raise RequestError(
            f"{field_name}: {shown(text.vocabulary.token_text(stray))} is token {stray} of the tokenizer, but the "
            f"model has tokens from 0 to {limits.vocab_size - 1} only; leave it out.",
            param=field_name,
        )
    return token_ids
