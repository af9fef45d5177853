"""Bodies become prompts: token ids, and the text where there is one. Knows nothing of sampling or answers."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

from plugserve.core.errors import RequestError
from plugserve.server.api.chat.body import ChatBody, template_messages
from plugserve.server.api.completions.body import CompletionBody, split_prompts
from plugserve.server.api.generation_body import GenerationBody
from plugserve.server.pipeline.choice import Echo
from plugserve.server.pipeline.sampling_params import Limits, check_prompt_length, check_token_ids
from plugserve.server.text.detokenizer import Vocabulary
from plugserve.server.text.tools_as_text import messages_with_tools
from plugserve.server.worker.served_models import Template, TextSide

_ANSWER_HEAD = 200  # characters; what a template writes before an answer is shorter
_CHARACTERS_PER_TOKEN = 256  # no vocabulary packs more into one; longer texts are refused before they are tokenised


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt. text is None for one that came as token ids; is_continued: the answer goes on in its last word;
    begun: what it holds of the answer already, None where the answer is plain text. block_hashes are those of its full
    blocks, where the engine has a prefix cache (see prompt_hashes)."""

    token_ids: list[int]
    text: str | None = None
    is_continued: bool = True
    begun: str | None = None
    block_hashes: bytes = b""


async def chat_prompts(body: ChatBody, text: TextSide, limits: Limits, pool: Executor) -> list[Prompt]:
    """The one prompt of a conversation. Raises RequestError (400)."""
    if text.template is None:
        raise RequestError(
            "This model has no chat template: use /v1/completions, or start the server with --chat-template.",
            code="chat_template_missing",
        )
    is_continued = bool(body.continue_final_message)
    messages = _messages(body, text, text.template)
    render = functools.partial(
        _renderer(body, text.template, limits),
        messages,
        continue_final_message=is_continued,
        tools=body.tools if body.tools and body.tool_choice != "none" else None,
        kwargs=body.template_kwargs,
    )
    opens = not is_continued if body.add_generation_prompt is None else body.add_generation_prompt
    rendered = await render(add_generation_prompt=opens)
    begun = await begun_answer(rendered, messages[-1], render, is_continued) if text.parsers.reasoning else ""
    token_ids = await _encode(rendered, text, limits, pool, "messages", add_special_tokens=False)
    return [
        _cut(Prompt(token_ids, rendered, is_continued=is_continued, begun=begun), body, body.num_new_tokens, limits)
    ]


def _messages(body: ChatBody, text: TextSide, template: Template) -> list[dict[str, Any]]:
    """The conversation for the template. One that knows no tools gets them in words, where the model's answers are
    read as JSON (always, where a call is forced)."""
    messages = template_messages(body.messages)
    knows_tools = template.takes_tools if body.chat_template is None else "tools" in body.chat_template
    is_forced = body.tool_choice not in (None, "auto", "none")
    if knows_tools or not (is_forced or text.parsers.reads_json):
        return messages
    tools = body.tools if isinstance(body.tools, list) and body.tool_choice != "none" else []
    return messages_with_tools(messages, tools, body.tool_choice)


async def begun_answer(
    rendered: str, last: Mapping[str, Any], render: Callable[..., Awaitable[str]], is_continued: bool
) -> str:
    """What rendered holds of the answer: the last message where that is continued, else what the template writes
    behind it. Where that message's text can't be told from the template's, the conversation is rendered without it."""
    content = str(last.get("content") or "").strip()
    if is_continued:
        found = rendered.rfind(content)
        return rendered[found:] if found >= 0 else ""
    tail = rendered[-len(content) - _ANSWER_HEAD :]
    if content and tail.count(content) == 1:
        return tail.partition(content)[2]
    bare = await render(add_generation_prompt=False)
    return rendered[len(bare) :] if rendered.startswith(bare) else rendered[-_ANSWER_HEAD:]


def _renderer(body: ChatBody, template: Template, limits: Limits) -> Callable[..., Awaitable[str]]:
    """The model's template, or the body's own one where the server trusts it. Raises RequestError (400)."""
    if body.chat_template is None:
        return template.render
    if not limits.trusts_templates:
        raise RequestError(
            "chat_template: not allowed by this server (--trust-request-chat-template allows it); leave it out.",
            code="unsupported_value",
            param="chat_template",
        )
    return functools.partial(template.render_with, body.chat_template)


async def completion_prompts(body: CompletionBody, text: TextSide, limits: Limits, pool: Executor) -> list[Prompt]:
    """All prompts of a body, in its order. Raises RequestError (400)."""
    prompts: list[Prompt] = []
    for prompt in split_prompts(body.prompt):
        if isinstance(prompt, str):
            token_ids = await _encode(prompt, text, limits, pool, "prompt", add_special_tokens=True)
            prompts.append(_cut(Prompt(token_ids, prompt), body, body.num_new_tokens, limits))
        else:
            cut = _cut(Prompt(prompt), body, body.num_new_tokens, limits)
            check_prompt_length(len(cut.token_ids), limits, "prompt")
            check_token_ids(cut.token_ids, limits.vocab_size, "prompt")
            prompts.append(cut)
    return prompts


def _cut(prompt: Prompt, body: GenerationBody, num_new_tokens: int | None, limits: Limits) -> Prompt:
    """The last truncate_prompt_tokens tokens of prompt; for -1 as many as the context and what is to be generated leave
    room for. Raises RequestError (400) for more than the context holds."""
    count = body.truncate_prompt_tokens
    if count is None:
        return prompt
    if count > limits.max_model_len:
        raise RequestError(
            f"truncate_prompt_tokens: must be at most {limits.max_model_len}, the model's context, got {count}",
            param="truncate_prompt_tokens",
        )
    if count == -1:
        count = max(1, min(limits.longest_prompt, limits.max_model_len - (num_new_tokens or 1)))
    if len(prompt.token_ids) <= count:
        return prompt
    return replace(prompt, token_ids=prompt.token_ids[-count:], text=None)


def echo_of(prompt: Prompt, vocabulary: Vocabulary, *, skip_special_tokens: bool) -> Echo:
    """The prompt as an answer repeats it."""
    detokenizer = vocabulary.detokenizer(skip_special_tokens=skip_special_tokens)
    offsets, told = [], ""
    for token_id in prompt.token_ids:
        offsets.append(len(told))
        told += detokenizer.push(token_id)
    told += detokenizer.flush()
    return Echo(told if prompt.text is None else prompt.text, prompt.token_ids, offsets)


def context_of(prompt: Prompt) -> Sequence[int]:
    """The tokens that the answer's text goes on from; none where it stands alone."""
    return prompt.token_ids if prompt.is_continued else ()


async def encode_text(
    prompt: str, text: TextSide, limits: Limits, pool: Executor, field_name: str, *, add_special_tokens: bool
) -> list[int]:
    """Tokenise in a thread, off the event loop. Raises RequestError (400) for a hopelessly long text."""
    if len(prompt) > (limits.longest_prompt + 1) * _CHARACTERS_PER_TOKEN:
        raise RequestError(
            f"This server takes prompts of at most {limits.longest_prompt} tokens (the model's maximum context length "
            f"is {limits.max_model_len} tokens), but the prompt has {len(prompt)} characters; shorten it.",
            code="context_length_exceeded",
            param=field_name,
        )
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(pool, lambda: text.encode(prompt, add_special_tokens=add_special_tokens))


async def _encode(
    prompt: str, text: TextSide, limits: Limits, pool: Executor, field_name: str, *, add_special_tokens: bool
) -> list[int]:
    """encode_text, but raises RequestError (400) for an empty prompt too."""
    token_ids = await encode_text(prompt, text, limits, pool, field_name, add_special_tokens=add_special_tokens)
    if not token_ids:
        raise RequestError(f"{field_name}: must not be empty.", param=field_name)
    return token_ids
