"""Renders conversations as prompts with the model's Jinja template.

Rendering happens in child processes (template_process.py in a SandboxPool), which are killed when a render takes too
long.
"""

from __future__ import annotations

from typing import Any

import jinja2

from plugserve.core.errors import ModelError, RequestError
from plugserve.server.sandbox.fair_queue import ANONYMOUS, Sender
from plugserve.server.sandbox.sandbox_pool import SandboxPool
from plugserve.server.sandbox.template_process import make_environment
from plugserve.server.text.rendered_text import RenderedText

RENDER_TIMEOUT_S = 2.0
_RESERVED = ("messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize")


class ChatTemplate:
    """One model's chat template. Belongs to the event loop that it is first used on.

    template None is a model without one: every render is refused. special_tokens (bos_token, ...) are the
    template's variables. Raises ModelError for a template that isn't Jinja.
    """

    def __init__(
        self, template: str | None, special_tokens: dict[str, str], *, timeout_s: float = RENDER_TIMEOUT_S
    ) -> None:
        if template is not None:
            _check_syntax(template)
        self._template = template
        self._sandbox = _pool("chat template", template, special_tokens, timeout_s)
        self._of_requests = _pool("request's chat_template", None, special_tokens, timeout_s, is_kept=False)

    @property
    def takes_tools(self) -> bool:
        """The template has a place for tools."""
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
        sender: Sender = ANONYMOUS,
    ) -> RenderedText:
        """The prompt for messages. kwargs are extra variables of the template (chat_template_kwargs).

        Raises RequestError when the template refuses, fails, takes too long or grows too large, QueueFullError when too
        many renders wait.
        """
        if self._template is None:
            raise RequestError(
                "this model has no chat template: start the server with --chat-template, or use /v1/completions",
                code="chat_template_missing",
            )
        request = _question(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            kwargs=kwargs,
        )
        return _text_of(await self._sandbox.ask(request, sender))

    async def render_with(
        self, template: str, messages: list[dict[str, Any]], *, sender: Sender = ANONYMOUS, **arguments: Any
    ) -> RenderedText:
        """Render with a client's own template, in a process that exits afterwards; a few at a time."""
        request = _question(messages, **arguments)
        try:
            return _text_of(await self._of_requests.ask({**request, "template": template}, sender))
        except RequestError as error:
            param = error.param or "chat_template"
            raise RequestError(str(error), status=error.status, code="chat_template_error", param=param) from None

    async def close(self) -> None:
        """End the children. Renders that are under way fail; later ones are refused."""
        await self._sandbox.close()
        await self._of_requests.close()


def _pool(
    name: str, template: str | None, special_tokens: dict[str, str], timeout_s: float, *, is_kept: bool = True
) -> SandboxPool:
    set_up = {"template": template, "special_tokens": special_tokens}
    module = "plugserve.server.sandbox.template_process"
    return SandboxPool(module, set_up, name=name, timeout_s=timeout_s, is_kept=is_kept)


def _question(
    messages: list[dict[str, Any]],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    tools: list[Any] | None = None,
    kwargs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    if add_generation_prompt and continue_final_message:
        raise RequestError(
            "add_generation_prompt and continue_final_message can't both be true", param="continue_final_message"
        )
    kwargs = kwargs or {}
    reserved = next((name for name in kwargs if name in _RESERVED), None)
    if reserved is not None:
        raise RequestError(f"chat_template_kwargs may not set {reserved!r}", param="chat_template_kwargs")
    return {
        "messages": messages,
        "tools": tools,
        "add_generation_prompt": add_generation_prompt,
        "continue_final_message": continue_final_message,
        "kwargs": kwargs,
    }


def _check_syntax(template: str) -> None:
    """Parse without optimising, so that no code of the template runs here."""
    try:
        make_environment().parse(template)
    except jinja2.exceptions.TemplateSyntaxError as error:
        raise ModelError(
            f"the model's chat template is not valid Jinja: line {error.lineno}: {error.message}; "
            "replace it with --chat-template"
        ) from None
    except RecursionError:
        raise ModelError("the model's chat template nests too deeply; replace it") from None


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
