"""Renders conversations as prompts with the model's Jinja template.

Rendering happens in child processes (template_process.py in a SandboxPool), which are killed when a render takes too
long.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2

from plugserve.core.errors import ConfigError, ModelError, RequestError
from plugserve.server.sandbox.content_format import Format
from plugserve.server.sandbox.fair_queue import ANONYMOUS, Sender
from plugserve.server.sandbox.sandbox_pool import SandboxPool
from plugserve.server.sandbox.template_process import make_environment
from plugserve.server.text.rendered_text import RenderedText

RENDER_TIMEOUT_S = 2.0
_RESERVED = ("messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize")


class ChatTemplate:
    """One model's chat template. Belongs to the event loop that it is first used on.

    template None is a model without one: every render is refused. special_tokens (bos_token, ...) are the
    template's variables, and so is default_kwargs, which a render's own kwargs replace one by one. content_format: see
    ContentForm. Raises ModelError for a template that isn't Jinja.
    """

    def __init__(
        self,
        template: str | None,
        special_tokens: dict[str, str],
        *,
        default_kwargs: Mapping[str, Any] | None = None,
        content_format: Format = "auto",
        timeout_s: float = RENDER_TIMEOUT_S,
    ) -> None:
        if template is not None:
            _check_syntax(template)
        self._template = template
        self._default_kwargs = dict(default_kwargs or {})
        set_up = {"special_tokens": special_tokens, "content_format": content_format}
        self._sandbox = _pool("chat template", {**set_up, "template": template}, timeout_s)
        self._of_requests = _pool("request's chat_template", {**set_up, "template": None}, timeout_s, is_kept=False)

    @property
    def is_given(self) -> bool:
        """False for a model without a chat template."""
        return self._template is not None

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
            kwargs=self._with_defaults(kwargs),
        )
        return _text_of(await self._sandbox.ask(request, sender))

    async def render_with(
        self,
        template: str,
        messages: list[dict[str, Any]],
        *,
        kwargs: dict[str, Any] | None = None,
        sender: Sender = ANONYMOUS,
        **arguments: Any,
    ) -> RenderedText:
        """Render with a client's own template, in a process that exits afterwards; a few at a time."""
        request = _question(messages, kwargs=self._with_defaults(kwargs), **arguments)
        try:
            return _text_of(await self._of_requests.ask({**request, "template": template}, sender))
        except RequestError as error:
            param = error.param or "chat_template"
            raise RequestError(str(error), status=error.status, code="chat_template_error", param=param) from None

    def _with_defaults(self, kwargs: dict[str, Any] | None) -> dict[str, Any]:
        return {**self._default_kwargs, **(kwargs or {})}

    async def close(self) -> None:
        """End the children. Renders that are under way fail; later ones are refused."""
        await self._sandbox.close()
        await self._of_requests.close()


def _pool(name: str, set_up: dict[str, Any], timeout_s: float, *, is_kept: bool = True) -> SandboxPool:
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
        "messages": [_with_parts(message) for message in messages],
        "tools": tools,
        "add_generation_prompt": add_generation_prompt,
        "continue_final_message": continue_final_message,
        "kwargs": kwargs,
    }


def check_template_variables(kwargs: Mapping[str, Any]) -> None:
    """Raise ConfigError for --default-chat-template-kwargs that a request couldn't set either."""
    for name in kwargs:
        if name in _RESERVED:
            raise ConfigError(f"--default-chat-template-kwargs can't set {name!r}: the server sets it for each request")


class PartedText(str):
    """A content that came in several parts: their texts joined by line breaks, and each by itself. Templates that take
    parts get those."""

    __slots__ = ("texts",)
    texts: list[str]

    @classmethod
    def of(cls, texts: list[str]) -> PartedText:
        joined = cls("\n".join(texts))
        joined.texts = texts
        return joined


def _with_parts(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, PartedText):
        return message
    return {**message, "content": [{"type": "text", "text": text} for text in content.texts]}


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
