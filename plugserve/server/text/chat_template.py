"""Conversations as prompts, through the model's own Jinja template. Knows nothing of HTTP or tokens.

Rendering happens in a child process (template_process.py in a Sandbox), which is killed when a render takes too long.
"""

from __future__ import annotations

import asyncio
from typing import Any

import jinja2

from plugserve.core.errors import ModelError, RequestError
from plugserve.server.sandbox.sandbox import Sandbox
from plugserve.server.sandbox.template_process import make_environment
from plugserve.server.text.rendered_text import RenderedText

RENDER_TIMEOUT_S = 2.0
_OWN = "the model's chat template"
_MAX_FOREIGN = 2  # clients' own templates that render at once
_RESERVED = ("messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize")


class ChatTemplate:
    """One model's chat template. Belongs to the event loop that it is first used on.

    template None is a model without one: every render is refused. special_tokens (bos_token, ...) are the
    template's variables. Raises ModelError for a template that isn't Jinja.
    """

    def __init__(
        self,
        template: str | None,
        special_tokens: dict[str, str],
        *,
        timeout_s: float = RENDER_TIMEOUT_S,
        name: str = _OWN,
    ) -> None:
        if template is not None:
            _check_syntax(template, name)
        self._name = name
        self._foreign = asyncio.Semaphore(_MAX_FOREIGN)
        self._template = template
        self._special_tokens = special_tokens
        self._timeout_s = timeout_s
        sandbox_name = "chat template" if name == _OWN else name.removeprefix("the ")
        self._sandbox = Sandbox(
            "plugserve.server.sandbox.template_process",
            {"template": template, "special_tokens": special_tokens},
            name=sandbox_name,
            timeout_s=timeout_s,
        )

    @property
    def takes_tools(self) -> bool:
        """It has a place for tools."""
        return self._template is not None and "tools" in self._template

    async def start(self) -> None:
        """Start the child and compile the template now rather than at the first render. Raises ModelError."""
        if self._template is None:
            return
        try:
            await self._sandbox.start()
        except RequestError as error:
            raise ModelError(str(error)) from None

    async def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> RenderedText:
        """The prompt for messages. kwargs are extra variables of the template (chat_template_kwargs).

        Raises RequestError when the template refuses, fails, takes too long or grows too large.
        """
        if self._template is None:
            raise RequestError(
                "this model has no chat template: start the server with --chat-template, or use /v1/completions",
                code="chat_template_missing",
            )
        if add_generation_prompt and continue_final_message:
            raise RequestError(
                "add_generation_prompt and continue_final_message can't both be true", param="continue_final_message"
            )
        kwargs = kwargs or {}
        reserved = next((name for name in kwargs if name in _RESERVED), None)
        if reserved is not None:
            raise RequestError(f"chat_template_kwargs may not set {reserved!r}", param="chat_template_kwargs")
        request = {
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "kwargs": kwargs,
        }
        return _text_of(await self._sandbox.ask(request))

    async def render_with(self, template: str, messages: list[dict[str, Any]], **arguments: Any) -> RenderedText:
        """render with a client's own template, in a process that ends with it; a few at a time."""
        async with self._foreign:
            try:
                foreign = ChatTemplate(
                    template, self._special_tokens, timeout_s=self._timeout_s, name="the request's chat_template"
                )
            except ModelError as error:
                raise RequestError(str(error), code="chat_template_error", param="chat_template") from None
            try:
                return await foreign.render(messages, **arguments)
            finally:
                await foreign.close()

    async def close(self) -> None:
        """End the child. Renders that are under way fail; later ones are refused."""
        await self._sandbox.close()


def _check_syntax(template: str, name: str) -> None:
    """Parse only: nothing of the template runs or is folded here."""
    try:
        make_environment().parse(template)
    except jinja2.exceptions.TemplateSyntaxError as error:
        raise ModelError(
            f"{name} is not valid Jinja: line {error.lineno}: {error.message}; replace it with --chat-template"
        ) from None
    except RecursionError:
        raise ModelError(f"{name} nests too deeply; replace it") from None


def _text_of(answer: dict[str, Any]) -> RenderedText:
    if "error" in answer:
        raise RequestError(f"{answer['error']}", code="chat_template_error")
    text: str = answer["text"]
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError("the messages hold half a surrogate pair, which is not text", param="messages") from None
    return RenderedText(text, answer["client_spans"])
