"""Bodies become prompts: token ids, and the text where there is one. Knows nothing of sampling or answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from plugserve.core.errors import RequestError
from plugserve.server.choice import Echo
from plugserve.server.detokenizer import Vocabulary
from plugserve.server.sampling import Limits, check_prompt_length, check_token_ids
from plugserve.server.schemas.chat import ChatBody, template_messages
from plugserve.server.schemas.completion import CompletionBody, split_prompts
from plugserve.server.served_models import TextSide

_CHARACTERS_PER_TOKEN = 256  # no vocabulary packs more into one; longer texts are refused before they are tokenised


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt. text is None for one that came as token ids; is_continued: the answer goes on in its last word."""

    token_ids: list[int]
    text: str | None = None
    is_continued: bool = True


async def chat_prompts(body: ChatBody, text: TextSide, limits: Limits, pool: Executor) -> list[Prompt]:
    """The one prompt of a conversation. Raises RequestError (400)."""
    if text.template is None:
        raise RequestError(
            "This model has no chat template: use /v1/completions, or start the server with --chat-template.",
            code="chat_template_missing",
        )
    is_continued = bool(body.continue_final_message)
    rendered = await text.template.render(
        template_messages(body.messages),
        add_generation_prompt=not is_continued if body.add_generation_prompt is None else body.add_generation_prompt,
        continue_final_message=is_continued,
        tools=body.tools if body.tools and body.tool_choice != "none" else None,
        kwargs=body.chat_template_kwargs,
    )
    token_ids = await _encode(rendered, text, limits, pool, "messages", add_special_tokens=False)
    return [Prompt(token_ids, rendered, is_continued=is_continued)]


async def completion_prompts(body: CompletionBody, text: TextSide, limits: Limits, pool: Executor) -> list[Prompt]:
    """All prompts of a body, in its order. Raises RequestError (400)."""
    prompts: list[Prompt] = []
    for prompt in split_prompts(body.prompt):
        if isinstance(prompt, str):
            prompts.append(Prompt(await _encode(prompt, text, limits, pool, "prompt", add_special_tokens=True), prompt))
        else:
            check_prompt_length(len(prompt), limits, "prompt")
            check_token_ids(prompt, limits.vocab_size, "prompt")
            prompts.append(Prompt(prompt))
    return prompts


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


async def _encode(
    prompt: str, text: TextSide, limits: Limits, pool: Executor, field_name: str, *, add_special_tokens: bool
) -> list[int]:
    """Tokenise in a thread, off the event loop. Raises RequestError (400) for an empty or hopelessly long prompt."""
    if len(prompt) > limits.max_model_len * _CHARACTERS_PER_TOKEN:
        raise RequestError(
            f"This model's maximum context length is {limits.max_model_len} tokens, but the prompt has "
            f"{len(prompt)} characters; shorten it.",
            code="context_length_exceeded",
            param=field_name,
        )
    loop = asyncio.get_running_loop()
    token_ids = await loop.run_in_executor(pool, lambda: text.encode(prompt, add_special_tokens=add_special_tokens))
    if not token_ids:
        raise RequestError(f"{field_name}: must not be empty.", param=field_name)
    return token_ids
